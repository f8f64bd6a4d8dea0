"""Files that look like those of a family and are of other models: recognised so that the reason can be said."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple


class Stranger(NamedTuple):
    """A kind of file that no family reads."""

    about: str
    tell: str  # pattern of the names that only such files have, without the module before them
    also: str  # ... beside one of the same module that matches this
    reason: str


_PATCHES = r"patch_embed\w*\..+"
STRANGERS = (
    Stranger(
        "an iTPN (iTPN-pixel, Fast-iTPN)",
        r"(?:align_dim_\w+|fpn_\w+|decoder_fpn\w*)(?:\..+)?",
        _PATCHES,
        "its encoder looks like a HiViT, but was trained with a feature pyramid of its own, which no model here has",
    ),
    Stranger(
        "a Fast-iTPN",
        r"blocks\.\d+\.(?:attn\.inner_attn_ln|mlp\.ffn_ln)\..+",
        _PATCHES,
        "its blocks have norms inside attention and MLP, and gated MLPs, which no model here has",
    ),
    Stranger(
        "a BEiT or EVA",
        r"(?:blocks\.\d+\.attn\.(?:q_bias|v_bias|relative_position_bias_table)"
        r"|rel_pos_bias\.relative_position_bias_table)",
        r"cls_token",
        "its attention has relative or rotary positions, which plain ViTs here do not have; most have layer scale, too",
    ),
    Stranger(
        "a BEiT of transformers",
        r"(?:encoder\.layer|layers)\.\d+\.lambda_[12]",
        r"embeddings\.cls_token",
        "its attention has relative positions, and its blocks have layer scale, which plain ViTs here do not have",
    ),
    Stranger(
        "a DeiT of transformers",
        r"embeddings\.distillation_token",
        r"embeddings\.cls_token",
        "it is distilled: a second token goes through all blocks, which were trained with it",
    ),
    Stranger(
        "a CLIP of transformers",
        r"embeddings\.class_embedding",
        r"pre_layrnorm\..+",
        "it has a norm before the first block, which plain ViTs here do not have",
    ),
)


class Strange(ValueError):
    """A file is of a kind that no family reads."""


def refuse_strangers(names: Collection[str]) -> None:
    """Say of a file that no family reads which kind it is. Both names that tell are of one module.

    Raises:
        Strange: it is one of STRANGERS; names the first tensor that tells.
    """
    for stranger in STRANGERS:
        found = (re.fullmatch(rf"(?P<module>(?:.+\.)?){stranger.also}", name) for name in names)
        modules = {match["module"] for match in found if match}
        for name in names if modules else ():
            match = re.fullmatch(rf"(?P<module>(?:.+?\.)?){stranger.tell}", name)
            if match and match["module"] in modules:
                raise Strange(f"the file is of {stranger.about}, as tensor {name!r} tells: {stranger.reason}")
