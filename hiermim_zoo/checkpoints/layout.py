"""What a layout is, and what several of them share.

A layout is recognised by the names in a file alone: all of ``has`` occur, none of ``lacks`` does. Layouts exclude each
other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from .rules import Copy, Join, Rename, Rule


@dataclass(frozen=True)
class Layout:
    """How one kind of published file names its tensors."""

    name: str
    about: str  # whose files these are
    has: tuple[str, ...]  # signature: each pattern matches some name
    lacks: tuple[str, ...]  # ... and none of these matches any
    rules: tuple[Rule, ...]
    may_be_missing: tuple[str, ...] = ()  # target names that start from their initial value
    # The rest of a masked autoencoder: to "fusion.*" and "decoder.*", or dropped with its reason.
    decoder: tuple[Rename | Join, ...] = ()
    back: tuple[Rule, ...] = ()  # the way back, of what ``rules`` and ``decoder`` change
    # On the way back: what its files hold beyond weights, from a model.
    added: Callable[[Any], dict[str, Tensor]] | None = None
    added_why: str = ""  # what has to be said of that
    top_key: str = "model"  # under which the files of its authors hold the tensors; "" where these are all there is
    # Of timm's config, where the architecture's default is wrong.
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    warning: str = ""  # said whenever such a file is read
    # Values of the autoencoder's recipe that its decoders were trained with, where they are not the family's.
    recipe: Mapping[str, Any] = field(default_factory=dict)
    license_note: str = ""  # of the licence of such files, where others say another; for report and card
    own: bool = False  # the files of this package
    prefix: str = ""  # names that begin with it lose it before ``has``, ``lacks``, ``rules`` and ``decoder`` see them
    bare: bool = True  # there are also files without the prefix
    exchanges: bool = False  # the encoder in such a file can be exchanged: its tensors are renamed, nothing else
    by_name: bool = False  # its files have the names of another layout: only a tag or --layout can tell

    def fits(self, names: Collection[str]) -> bool:
        short = [name.removeprefix(self.prefix) for name in names]
        return not self.missing(names) and not any(_any(pattern, short) for pattern in self.lacks)

    def missing(self, names: Collection[str]) -> list[str]:
        """What of the signature does not occur among the names."""
        if not self.bare and not any(name.startswith(self.prefix) for name in names):
            return [f"names that begin with {self.prefix}"]
        short = [name.removeprefix(self.prefix) for name in names]
        return [pattern for pattern in self.has if not _any(pattern, short)]

    def missed(self, wanted: Collection[str], names: Collection[str]) -> list[str]:
        """Of the names wanted those that may start from their initial value: of a pattern all are missing, or none."""
        found = []
        for pattern in self.may_be_missing:
            group = [name for name in wanted if re.fullmatch(pattern, name)]
            found += group if not any(name in names for name in group) else []
        return found

    def may_miss(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.may_be_missing)


def _any(pattern: str, names: Collection[str]) -> bool:
    return any(re.fullmatch(pattern, name) for name in names)


HEADS_OF_TASKS = "of the task that the encoder was trained for afterwards, which no model here has"
DECODER_REASON = "decoder of the masked autoencoder"
HEAD = (Copy(r"(fc_norm|head)\.(weight|bias)"),)
# The decoder of MAE's code, which others have taken over, and its way back.
MAE_DECODER = (
    Rename("mask_token", "decoder.mask_token"),
    Rename("decoder_pos_embed", "decoder.pos_embed"),
    Rename(r"decoder_(embed|norm|pred)\.(weight|bias)", r"decoder.\1.\2"),
    Rename(r"decoder_blocks\.(\d+)\.(.+)", r"decoder.blocks.\1.\2"),
)
MAE_DECODER_BACK = (
    Rename(r"decoder\.mask_token", "mask_token"),
    Rename(r"decoder\.pos_embed", "decoder_pos_embed"),
    Rename(r"decoder\.(embed|norm|pred)\.(weight|bias)", r"decoder_\1.\2"),
    Rename(r"decoder\.blocks\.(\d+)\.(.+)", r"decoder_blocks.\1.\2"),
)
# The decoder of mae.MaskedAutoencoder, in its own names.
_OWN_DECODER = (
    Rename(r"(fusion\.(?:norm|heads\.\d)\.(?:weight|bias))", r"\1"),
    Rename(r"(decoder\.(?:mask_token|pos_embed))", r"\1"),
    Rename(r"(decoder\.(?:embed|norm|pred)\.(?:weight|bias))", r"\1"),
    Rename(r"(decoder\.blocks\.\d+\.(?:norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(?:weight|bias))", r"\1"),
)


def own_autoencoder(encoder: Layout) -> Layout:
    """The layout of this package's masked autoencoders: snapshots of a run, ``create_mae(ARCH).state_dict()``.

    Args:
        encoder: layout that has the names of the encoder.
    """
    return replace(
        encoder,
        name=f"{encoder.name}_autoencoder",
        about="this package's own autoencoders: snapshots of a run, create_mae(...).state_dict()",
        has=(*encoder.has, r"decoder\.mask_token", r"decoder\.embed\.weight"),
        decoder=_OWN_DECODER,
        back=(),
        prefix="encoder.",
        bare=False,
    )
