"""Linear layers that are fast on every CPU.

For float32 on CPUs torch multiplies matrices with MKL, which is slow on processors that are not Intel's; oneDNN, which torch has
too, is two to three times as fast there and can apply the activation on the way. It is used where nothing is differentiated;
everywhere else these layers are torch's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

# What torch's own compiler calls; a build without oneDNN has no such operator.
_onednn: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None

torch.fx.wrap("linear")  # its branch depends on the tensors


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """[..., c] -> [..., c'], x W^T + b, and its GELU if asked for."""
    if _direct(x, weight):
        return _onednn(x, weight, bias, "gelu" if gelu else "none", [], "none" if gelu else "")
    x = F.linear(x, weight, bias)
    return F.gelu(x) if gelu else x


def _direct(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN can be called: plain float32 tensors on a CPU, no gradients, no graph being captured."""
    return bool(
        _onednn is not None
        and all(type(t) in (Tensor, nn.Parameter) for t in (x, weight))
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch.backends.mkldnn.enabled
        and x.numel()
    )


class Linear(nn.Linear):
    """torch's layer, by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0, **dd: Any) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden, **dd)
        self.drop1 = nn.Dropout(drop)
        self.fc2 = Linear(hidden, dim, **dd)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop1(linear(x, self.fc1.weight, self.fc1.bias, gelu=True))
        return self.drop2(self.fc2(x))
