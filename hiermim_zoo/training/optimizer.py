"""Optimisers of timm, and the learning rate as a function of the step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

# One kernel for all tensors of a device; a step can be left out without the host knowing. torch.optim.SGD has such a
# kernel too, but its first step, left out, would leave its momentum as it was allocated.
FUSED = (torch.optim.Adam, torch.optim.AdamW)
FUSED_DEVICES = ("cpu", "cuda")
KERNELS = ("fused", "foreach", "capturable")  # what a group of parameters says of how it is computed


def check_optimizer(name: str) -> None:
    """Refuse what is no optimiser of timm.

    Raises:
        ValueError: naming it.
    """
    try:
        get_optimizer_info(name)
    except ValueError as error:
        hint = "; lookahead cannot be used here" if name.startswith("lookahead") else ""
        raise ValueError(f"--opt {name!r} is none of timm's optimisers{hint}: {error}; adamw would work") from error


def make_optimizer(
    model: nn.Module,
    name: str,
    weight_decay: float,
    betas: Iterable[float],
    layer_decay: float | None = None,
    no_decay: Iterable[str] = (),
) -> torch.optim.Optimizer:
    """An optimiser of timm; learning rates are set before each step.

    Args:
        name: any that timm knows.
        betas: for those that have them.
        layer_decay: factor from one layer to the one below, by the model's ``group_matcher``.
        no_decay: names without weight decay, beside tensors of one dimension and biases.

    Raises:
        ValueError: unknown optimiser.
    """
    if layer_decay is None:
        groups: Any = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=set(no_decay))
    else:
        groups = param_groups_layer_decay(
            model, weight_decay, no_weight_decay_list=set(no_decay), layer_decay=layer_decay
        )
    try:
        info = get_optimizer_info(name)
        extra: dict[str, Any] = {"betas": tuple(betas)} if info.has_betas else {}
        if info.opt_class in FUSED and all(p.device.type in FUSED_DEVICES for p in model.parameters()):
            extra["fused"] = True
        return create_optimizer_v2(groups, name, lr=0.0, **extra)
    except (ValueError, AssertionError, TypeError) as error:
        raise ValueError(f"optimiser {name!r} cannot be made: {error}") from error


def gradient_norm(parameters: Iterable[nn.Parameter], most: float | None = None) -> Tensor:
    """The norm of the gradients as they were, [] on their device; not finite where one of them is not.

    Args:
        most: gradients are scaled down to this norm; None or 0: they stay as they are.
    """
    parameters = [p for p in parameters if p.grad is not None]
    norm: Any = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if most:
        nn.utils.clip_grads_with_norm_(parameters, most, norm)
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of gradients spread over processes
    return whole


def decides_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step can be left out because of a number that the host does not know."""
    return type(optimizer) in FUSED and all(group["fused"] for group in optimizer.param_groups)


@contextmanager
def own_kernels(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, a saved state may be loaded: what was computed counts, not by which kernels it was."""
    kept = [{key: group[key] for key in KERNELS if key in group} for group in optimizer.param_groups]
    yield
    for group, own in zip(optimizer.param_groups, kept, strict=True):
        group.update(own)


def take_step(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, bad: Tensor) -> None:
    """A step, left out where it is ``bad`` ([], bool); the host waits for ``bad`` if the optimiser cannot decide."""
    if scaler.is_enabled():  # leaves out steps whose gradients are not finite itself
        scaler.step(optimizer)
        scaler.update()
    elif decides_on_device(optimizer):
        told: Any = optimizer
        told.grad_scale, told.found_inf = None, bad.float()  # as torch's GradScaler tells it
        optimizer.step()
        del told.grad_scale, told.found_inf
    elif not bad:
        optimizer.step()
