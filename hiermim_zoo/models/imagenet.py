"""The names of the classes of ImageNet-1K, as timm has them and as transformers shows them."""

from __future__ import annotations

import functools
from typing import Any

from timm.data import ImageNetInfo

IMAGENET_CLASSES = 1000


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """In the order of the outputs: "tench, Tinca tinca", ..."""
    info: Any = ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_description(i) for i in range(IMAGENET_CLASSES))
