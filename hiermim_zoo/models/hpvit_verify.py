"""What the conversion of a plain ViT to HPViT promises, checked on the spot, and how near the two still are.

Letters: B images, N patches of the plain ViT, C channels; r pixels under a token of a level.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoints.layouts import Native
from ..progress import Progress
from ..text import counted
from .family import family_named
from .grids import Sizes, source_grid
from .hpvit_model import HPViT
from .shapes import without_memory

TOLERANCE = 1e-5  # largest relative difference of what must be equal


def verify(native: Native, model: HPViT) -> str:
    """Check what conversion promises.

    As long as its pooling is untrained, a model with pool="conv" computes what one with pool="avg" does; and without
    pooling, at the plain ViT's own stride, the blocks compute what the plain ViT computes, with the class token or
    without it.

    Returns:
        What was found, in words.

    Raises:
        ValueError: one of them is not so.
    """
    found = []
    if model.pool == "conv" and not any(name.startswith("pools.") for name in native.state):
        average = _twin(model, pool="avg")
        others = {name: t for name, t in model.state_dict().items() if not name.startswith(("pools.", "head."))}
        _fill(average, others)
        _check_equal(model.eval(), average, "pool='conv' computes something else than pool='avg'")
        found.append("convolutional pooling equals averaging")
    if not native.layout.own:  # else nothing is left of the plain ViT to compare with
        flat = _twin(
            model,
            img_size=_plain_size(native, model),
            patch_stride=model.patch_embed.proj.kernel_size[0],
            depths=(sum(model.depths),),
            pool="avg",
            window_size=None,
        )
        encoder = {name: tensor for name, tensor in native.state.items() if not name.startswith("head.")}
        _fill(flat, {**_fc_norm(model), **encoder})
        _check_equal(
            flat,
            _plain_vit(native, model),
            "without pooling the blocks compute something else than the plain ViT",
            model.class_token,
        )
        token = "with its class token" if model.class_token else "without class token"
        found.append(f"without pooling and at its own stride the features are those of the plain ViT {token}")
    return ", ".join(found)


@torch.inference_mode()
def similarity(
    state: Mapping[str, Tensor], model: HPViT, images: Tensor, size: int | tuple[int, int] | None = None
) -> str:
    """How near HPViT's map of about the plain ViT's own grid still is to the features of the plain ViT as it was
    published, with its class token.

    The plain ViT is asked after as many blocks as stand before the end of that level. Nothing promises any number:
    windows, pooling and the finer grid change what the blocks see.

    Args:
        state: the source checkpoint.
        model: converted from it.
        images: [B, C, H, W], of the model's size, normalised.
        size: height and width of the images that the plain ViT saw; None: square ones.

    Returns:
        The mean cosine over all places of all images, in words; empty where the source is no plain ViT or no level is
        near its grid.
    """
    native = family_named("hpvit").native(state, args={"class_token": True})._replace(size=size)
    reductions: list[int] = [info["reduction"] for info in model.feature_info]
    patch = model.patch_embed.proj.kernel_size[0]
    level = min(range(len(reductions)), key=lambda level: abs(reductions[level] - patch))
    if native.layout.own or 4 * abs(reductions[level] - patch) > patch:
        return ""
    plain, at = _plain_vit(native, model.eval()), model.stage_ends[level]
    cosines = []  # one image after the other: the models are large
    with Progress(len(images), "image", what="comparison with the plain ViT") as bar:
        for image in bar.over(images.split(1)):
            [ours] = model.forward_intermediates(image, indices=[level], intermediates_only=True)  # [1, C, h, w]
            resized = F.interpolate(image, plain.patch_embed.img_size, mode="bicubic", antialias=True)
            [theirs] = plain.forward_intermediates(resized, indices=[at], intermediates_only=True, norm=False)
            if theirs.shape[2:] != ours.shape[2:]:  # patches of 14 pixels, or another size of image
                theirs = F.interpolate(theirs, ours.shape[2:], mode="bilinear", align_corners=False)
            cosines.append(F.cosine_similarity(ours, theirs, dim=1).mean())
    found = f"{torch.stack(cosines).mean().item():.3f} at 1/{reductions[level]}"
    return f"cosine similarity to the plain ViT after block {at + 1}, on {counted(len(images), 'images')}: {found}"


def _plain_size(native: Native, model: HPViT) -> tuple[int, int]:
    """Height and width of the images that the plain ViT saw."""
    patch = model.patch_embed.proj.kernel_size[0]
    height, width = source_grid(native.state["pos_embed"].shape[1], patch, Sizes((native.size,)))
    return patch * height, patch * width


def _plain_vit(native: Native, model: HPViT) -> Any:
    """timm's plain ViT with the weights of a source in HPViT's names, with class token if they hold one."""
    state = {name: tensor for name, tensor in native.state.items() if not name.startswith("head.")}
    token = state.pop("cls_embed", None)
    with without_memory():
        plain = VisionTransformer(
            img_size=_plain_size(native, model),
            patch_size=model.patch_embed.proj.kernel_size[0],
            in_chans=model.in_chans,
            num_classes=0,
            global_pool="avg",
            embed_dim=model.embed_dim,
            depth=sum(model.depths),
            num_heads=model.num_heads,
            mlp_ratio=model.mlp_ratio,
            class_token=token is not None,
        ).eval()
    if token is not None:  # its position is in it already
        state.update(cls_token=token, pos_embed=F.pad(state["pos_embed"], (0, 0, 1, 0)))
    _fill(plain, {**_fc_norm(model), **state})
    return plain


def _fc_norm(model: HPViT) -> dict[str, Tensor]:
    return {f"fc_norm.{name}": tensor for name, tensor in model.fc_norm.state_dict().items()}


def _twin(model: HPViT, **changes: Any) -> HPViT:
    """A model of the same shape without classifier and without values, some arguments changed."""
    names = ("in_chans", "embed_dim", "depths", "num_heads", "mlp_ratio", "pool", "window_size", "class_token")
    embed, like = model.patch_embed, model.patch_embed.proj.weight
    sizes = {"img_size": embed.img_size, "patch_size": like.shape[-1], "patch_stride": embed.patch_size[0]}
    args = {**{name: getattr(model, name) for name in names}, **sizes, "num_classes": 0, **changes}
    with without_memory():
        return type(model)(**args).eval()


def _fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a model that has no values those of a state dict, in the model's types."""
    own = model.state_dict()
    typed = {name: tensor.to(own[name].dtype) if name in own else tensor for name, tensor in state.items()}
    model.load_state_dict(typed, assign=True)


@torch.inference_mode()
def _check_equal(a: Any, b: nn.Module, complaint: str, prefix: bool = False) -> None:
    """Compare the tokens of two models, those of the second but for its ``prefix``."""
    image = torch.randn(1, a.in_chans, *a.patch_embed.img_size, generator=torch.Generator().manual_seed(0))
    expected = b.forward_features(image)[:, int(prefix) :]  # type: ignore[operator]
    difference = ((a.forward_features(image) - expected).abs().max() / expected.abs().max()).item()
    if not difference <= TOLERANCE:
        raise ValueError(f"verification failed: {complaint} (largest relative difference {difference:.3g})")
