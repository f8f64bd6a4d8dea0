"""A frozen teacher: what it makes of the whole image is what a masked autoencoder predicts in place of pixels.

    image --teacher's mean, std and size--> teacher --last level--> grid of the decoder --LayerNorm--> features

The parts are those of MaskDistill (arXiv 2210.10615, section 2): teacher, normalisation, student, head, loss. Features
are normalised token by token without scale and shift, as in feature distillation (arXiv 2205.14141, section 3). So they
have mean 0 and variance 1, like the pixels of a normalised patch, and the loss can be the same: the mean squared error
on hidden tokens, as in MaskFeat (arXiv 2112.09133, section 3).

Letters: B images; C channels; D width of the teacher; h, w rows and columns of its last level (t before them: frames);
N tokens of the decoder in raster order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoints.files import find_file
from .checkpoints.folder import CONFIG_FILE
from .commands.options.pretrain import PIXELS, TEACHERS
from .data.transforms import data_config
from .geometry import channels_first, covering, from_units
from .mae import MaskedAutoencoder
from .models.build import LOCAL, has_weights, make_model
from .models.decoder import token_grid
from .models.shapes import without_memory
from .protocol import MaskableEncoder
from .text import counted


class BadTeacher(ValueError):
    """There is no such teacher, or not one of this student."""


def predicting(target: str) -> dict[str, Any]:
    """What the recipe of an autoencoder says of its target; no weights are read.

    Args:
        target: "features:MODEL" (pretrained), "random-features:MODEL" (not), or "pixels".

    Raises:
        BadTeacher: no such model, no weights, no feature map.
    """
    if target == PIXELS:
        return {"target": PIXELS, "target_dim": 0}
    # What a name of timm's stands for does not change, what is in a folder may.
    with _about(target):
        return {"target": target, "target_dim": (_width if ":" in target.partition(":")[2] else _known_width)(target)}


def _width(target: str) -> int:
    """Channels of a teacher that could be had."""
    with without_memory():
        _check_folder(target)
        model = _made(target, pretrained=False)
        _check_weights(target)
        return last_map(model, torch.zeros(1, *data_config(model)["input_size"])).shape[1]


_known_width = cache(_width)


class Teacher(nn.Module):
    """The frozen model that an autoencoder's recipe names; always in evaluation mode, and without gradients.

    It sees the whole image, at the size of the student's images, or at its own if timm says that this is fixed
    (``fixed_input_size``).

    Args:
        mae: whose recipe says the target.
        mean: of each channel of the student's images, of values from 0 to 1; None: as its encoder's configuration says.
        std: likewise.
        pretrained: False leaves out weights that there are, to look at shapes.

    Raises:
        BadTeacher: its weights cannot be had, it takes other channels or no clips, or has no map of such images.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        mae: MaskedAutoencoder,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        self.target, self.dim, self.grid = mae.recipe.target, mae.recipe.target_dim, token_grid(mae.layout)
        if self.target == PIXELS:
            raise BadTeacher(f"{PIXELS} need no teacher")
        with _about(self.target):
            with without_memory():
                sketch = _made(self.target, pretrained=False)
            own, fixed = data_config(sketch), _is_fixed(sketch)
            _check_student(own["input_size"], (mae.in_chans, *mae.input_size))
            self.size = tuple(own["input_size"] if fixed else mae.input_size)[-2:]
            told = self.size != tuple(own["input_size"][-2:]) and hasattr(sketch, "set_input_size")
            self.model: nn.Module = _made(self.target, pretrained, **({"img_size": self.size} if told else {}))
        said = data_config(mae.encoder, mae.input_size)
        ones = [torch.tensor(values) for values in (mean or said["mean"], std or said["std"], own["mean"], own["std"])]
        self.register_buffer("scale", ones[1] / ones[3], persistent=False)
        self.register_buffer("shift", (ones[0] - ones[2]) / ones[3], persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Teacher:
        """Nothing: it stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The features to be predicted.

        Args:
            images: [B, C, H, W], or clips [B, C, T, H, W]; normalised as the student's.

        Returns:
            [B, N, D], float32; each token has mean 0 and variance 1.
        """
        channels = (-1, *[1] * (images.ndim - 2))
        x = images * self.scale.view(channels) + self.shift.view(channels)
        if tuple(x.shape[-2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bicubic", antialias=True)
        x = on_grid(last_map(self.model, x).float(), self.grid)  # [B, D, *grid]
        return F.layer_norm(x.flatten(2).transpose(1, 2), (self.dim,)).float()

    def described(self) -> str:
        """What is predicted, in words."""
        sides = " x ".join(map(str, self.size))
        return f"target {self.target}: {counted(self.dim, 'channels')} of a frozen model that sees {sides} pixels"

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names and values of its weights, the first 16 digits."""
        found = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()[:16]


def check_teacher(mae: MaskedAutoencoder) -> None:
    """Refuse a teacher that has no features of such images, before any weights are read.

    Raises:
        BadTeacher: see :class:`Teacher`.
    """
    if mae.recipe.target == PIXELS:
        return
    with without_memory(), _about(mae.recipe.target):
        teacher = Teacher(mae, pretrained=False)
        try:
            found = teacher(torch.zeros(1, mae.in_chans, *mae.input_size))
        except (RuntimeError, AssertionError, ValueError) as error:
            sides = " x ".join(map(str, teacher.size))
            raise BadTeacher(f"it cannot see images of {sides} pixels: {_line(error)}") from error
    assert found.shape[-1] == mae.values


def last_map(model: nn.Module, x: Tensor) -> Tensor:
    """The features of the last level of an encoder, before the last norm: as timm takes them, or, where the level
    before a last pooling is what an autoencoder is given, the last stage of the protocol.

    Encoders that plan have windows, which treat the edges otherwise when they look at visible units: as timm does.

    Args:
        x: [B, C, H, W], or clips [B, C, T, H, W], as the model takes them.

    Returns:
        [B, D, h, w], or [B, D, t, h, w].

    Raises:
        ValueError: the model has none, or was built for another size and has to be told with ``set_input_size``.
    """
    if isinstance(model, MaskableEncoder) and not hasattr(type(model), "planner"):
        layout = model.mask_layout
        units = layout.units
        unit = [t * pixels for t, pixels in zip(layout.stages[-1].tokens, layout.stride, strict=True)]  # in pixels
        if any(covering(side, u) != n for side, u, n in zip(x.shape[2:], unit, units, strict=True)):
            size = tuple(n * u for n, u in zip(units, unit, strict=True))
            raise ValueError(f"{type(model).__name__} was set to {size}, but was given {tuple(x.shape[2:])}")
        keep = torch.arange(math.prod(units), device=x.device).repeat(len(x), 1)
        return channels_first(from_units(model.forward_visible(x, keep).stages[-1], units))
    take: Any = getattr(model, "forward_intermediates", None)
    if take is None:
        raise ValueError(f"{type(model).__name__} gives no feature maps: it has no forward_intermediates")
    found: Tensor = take(x, indices=1, output_fmt="NCHW", intermediates_only=True)[-1]
    return found


def on_grid(x: Tensor, grid: Sequence[int]) -> Tensor:
    """Resample a map [B, D, *sides] to [B, D, *grid]: bilinear, averaging where it becomes coarser; of clips areas."""
    if tuple(x.shape[2:]) == tuple(grid):
        return x
    if len(grid) == 2:
        return F.interpolate(x, tuple(grid), mode="bilinear", antialias=True)
    return F.interpolate(x, tuple(grid), mode="area")


# ---- what can be wrong


def _made(target: str, pretrained: bool, **size: Any) -> nn.Module:
    kind, _, name = target.partition(":")
    return make_model(name, pretrained=pretrained and TEACHERS[kind], num_classes=0, **size)


def _is_fixed(model: Any) -> bool:
    """Whether timm says that it takes images of its own size alone."""
    return bool((getattr(model, "pretrained_cfg", None) or {}).get("fixed_input_size"))


def _check_folder(target: str) -> None:
    """Refuse a folder that is none of a model.

    Raises:
        ValueError: naming what is not there.
    """
    kind, _, name = target.partition(":")
    if not name.startswith(LOCAL):
        return
    folder = Path(name.removeprefix(LOCAL))
    for path, fits in ((folder, folder.is_dir()), (folder / CONFIG_FILE, (folder / CONFIG_FILE).is_file())):
        if not fits:
            raise ValueError(f"{path} does not exist; a folder that convert or pretrain wrote would work")
    if TEACHERS[kind]:
        find_file(folder)


def _check_weights(target: str) -> None:
    """Refuse an architecture without weights as a teacher that is to have learned something.

    Raises:
        ValueError: it is so.
    """
    kind, _, name = target.partition(":")
    if TEACHERS[kind] and ":" not in name and not has_weights(name):  # of the Hub only the Hub knows
        raise ValueError(f"{name} has no pretrained weights; random-features:{name} takes random ones")


def _check_student(own: Sequence[int], student: Sequence[int]) -> None:
    """Refuse images that a teacher does not take.

    Args:
        own: channels, frames of a teacher of clips, height and width.
        student: likewise.

    Raises:
        ValueError: naming what differs.
    """
    if len(own) != len(student):
        takes, gets = ("clips" if len(shape) > 3 else "images" for shape in (own, student))
        raise ValueError(f"the teacher takes {takes}, and the student {gets}")
    if own[0] != student[0]:
        raise ValueError(f"the teacher takes images of {own[0]} channels, and the student of {student[0]}")
    if own[1:-2] != student[1:-2]:
        raise ValueError(f"the teacher takes clips of {own[1]} frames, and the student of {student[1]}")


@contextmanager
def _about(target: str) -> Iterator[None]:
    """Complaints are of one line, which names the target.

    Raises:
        BadTeacher: in place of whatever else a model raises that cannot be had.
    """
    try:
        yield
    except BadTeacher as error:
        raise BadTeacher(error if str(error).startswith(f"{target}: ") else f"{target}: {error}") from error
    except (ValueError, OSError, RuntimeError, AssertionError, TypeError) as error:
        raise BadTeacher(f"{target}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
