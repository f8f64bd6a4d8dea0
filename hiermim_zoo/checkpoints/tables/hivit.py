"""Layouts of HiViT (https://github.com/zhangxiaosong18/hivit, https://github.com/open-mmlab/mmpretrain, detectors and
trackers).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models.swin_transformer import get_relative_position_index
from torch import Tensor

from ..layout import DECODER_REASON, HEAD, HEADS_OF_TASKS, MAE_DECODER, MAE_DECODER_BACK, Layout
from ..rules import Copy, Drop, Rename, Rule

_POSITIONS = "absolute_pos_embed"
_BLOCKS = (r"patch_embed\.norm\.weight", r"blocks\.0\.norm2\.weight")
_SIGNATURE = (_POSITIONS, *_BLOCKS)
_NOT = (r"blocks\.0\.norm1\.weight",)  # the first block of a HiViT has no attention
_NORM, _FC_NORM = r"norm\.weight|mask_token", r"fc_norm\.weight"
_BLOCK_INDEX, _INDEX = r"blocks\.\d+\.attn\.relative_position_index", "relative_position_index"
_REST = (  # of the encoder, all but the positions
    r"(patch_embed\.(?:proj|norm)\.(?:weight|bias)"
    r"|blocks\.\d+\.(?:norm|norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(?:weight|bias)"
    r"|blocks\.\d+\.reduction\.weight"
    r"|blocks\.\d+\.attn\.relative_position_bias_table)"
)
_ENCODER: tuple[Rule, ...] = (Copy(_POSITIONS), Copy(_REST))
_INDICES = Drop(rf"{_BLOCK_INDEX}|{_INDEX}", "integer index, recomputed from the grid")
_TABLES, _UNTRAINED = r"blocks\.\d+\.attn\.relative_position_bias_table", r"fc_norm\.(weight|bias)"


def _index(pattern: str) -> Callable[[Any], dict[str, Tensor]]:
    """What strict loading into the authors' HiViT asks for beside the weights: an index of the bias tables.

    Args:
        pattern: its name, {} in it is the number of a block with attention; without, there is one for all.
    """

    def added(model: Any) -> dict[str, Tensor]:
        blocks = range(model.first_attention, len(model.blocks)) if "{}" in pattern else (0,)
        return {pattern.format(block): get_relative_position_index(*model.patch_embed.grid_size) for block in blocks}

    return added


# ---- under "backbone.": mmengine's projects, and trackers

_BACKBONE = Layout(
    "hivit_backbone",
    "the encoder of a detector, a segmenter, a tracker or a classifier of mmpretrain, under the prefix backbone.",
    has=_BLOCKS,  # and positions, whose lack the family names
    lacks=(*_NOT, "pos_embed", _FC_NORM, "mask_token"),
    rules=(
        *_ENCODER,
        _INDICES,
        Drop(r"norm_?\.(weight|bias)", "norm over the tokens of another task; fc_norm stands behind mean pooling"),
        Drop(r"fpn\d(\.\d)?\.(weight|bias|running_mean|running_var|num_batches_tracked)", "norms of a detector's maps"),
        Drop(r"(absolute_)?pos_embed_[xz]", "positions of a tracker's crops; those of absolute_pos_embed are taken"),
        Drop(r"(neck|head|\w+_head|decoder|box_\w+)\..+", HEADS_OF_TASKS),
    ),
    may_be_missing=(_TABLES, _UNTRAINED),
    back=(Rename(_POSITIONS, rf"backbone.{_POSITIONS}"), Rename(_REST, r"backbone.\1")),
    top_key="state_dict",
    prefix="backbone.",
    bare=False,
)
_MMPRETRAIN_DECODER = (
    f"{DECODER_REASON}; mmpretrain's takes the first visible token for a class token, which no decoder here does"
)
# ---- HiViT of SAR images (https://github.com/waterdisappear/SARATR-X)

_GRADIENTS = r"sarfeature\d\.weight_[xy][12]"  # box filters
_GRADIENT_DECODER = "decoder of gradients of SAR images, which no autoencoder here predicts"
_FINE_TUNED = (*_ENCODER, *HEAD, _INDICES)
LAYOUTS = (
    Layout(
        "hivit_supervised",
        "HiViT authors, supervised training (an index in every attention block)",
        has=(*_SIGNATURE, _BLOCK_INDEX),
        lacks=(*_NOT, _INDEX),
        rules=_FINE_TUNED,
        back=_FINE_TUNED,
        added=_index("blocks.{}.attn.relative_position_index"),
    ),
    Layout(
        "hivit_finetuned",
        "HiViT authors, fine-tuned after masked pre-training (one index at the top)",
        has=(*_SIGNATURE, _INDEX),
        lacks=(*_NOT, _BLOCK_INDEX),
        rules=_FINE_TUNED,
        back=_FINE_TUNED,
        added=_index(_INDEX),
    ),
    Layout(
        "hivit_mae",
        "HiViT authors, masked pre-training: encoder (trained without relative bias), norm of the joined levels, "
        "decoder",
        has=(*_SIGNATURE, _NORM),
        lacks=(*_NOT, _BLOCK_INDEX, _INDEX, _GRADIENTS),
        rules=_ENCODER,
        may_be_missing=(_TABLES, _UNTRAINED),
        decoder=(Rename(r"norm\.(weight|bias)", r"fusion.norm.\1"), *MAE_DECODER),
        back=(Rename(r"fusion\.norm\.(weight|bias)", r"norm.\1"), *MAE_DECODER_BACK),
    ),
    Layout(
        "hivit_saratrx",
        "SARATR-X, masked pre-training on SAR images, with a decoder that predicts gradients instead of pixels",
        has=(*_SIGNATURE, _NORM, _GRADIENTS),
        lacks=(*_NOT, _BLOCK_INDEX, _INDEX),
        rules=(
            *_ENCODER,
            Drop(_GRADIENTS, "fixed filters of the target"),
            Drop(r"norm\.(weight|bias)|mask_token|decoder_.+", _GRADIENT_DECODER),
        ),
        may_be_missing=(_TABLES, _UNTRAINED),
        preprocessing={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    ),
    Layout(
        "hivit_encoder",
        "HiViT authors' names of an encoder alone: masked pre-training without norm and decoder",
        has=_BLOCKS,  # and positions, whose lack the family names
        lacks=(*_NOT, _BLOCK_INDEX, _INDEX, _NORM, _FC_NORM, "pos_embed", r"head\.weight"),
        rules=_ENCODER,
        may_be_missing=(_TABLES, _UNTRAINED),
        back=_ENCODER,
    ),
    _BACKBONE,
    Layout(
        "hivit_mae_mmpretrain",
        "mmpretrain, masked pre-training of a HiViT, with a decoder that is another function than ours",
        has=("pos_embed", *_BLOCKS),
        lacks=(*_NOT, _POSITIONS, _FC_NORM),
        rules=(
            Rename("pos_embed", _POSITIONS),
            Copy(_REST),
            _INDICES,
            Drop(
                r"neck\.(mask_token|decoder_pos_embed|(decoder_embed|decoder_pred|ln1)\.(weight|bias))",
                _MMPRETRAIN_DECODER,
            ),
            Drop(
                r"neck\.decoder_blocks\.\d+\.(ln1|ln2|attn\.\w+|ffn\.layers\.(0\.0|1))\.(weight|bias)",
                _MMPRETRAIN_DECODER,
            ),
        ),
        may_be_missing=(_TABLES, _UNTRAINED),
        back=(Rename(_POSITIONS, "backbone.pos_embed"), Rename(_REST, r"backbone.\1")),
        top_key="state_dict",
        prefix="backbone.",
        bare=False,
    ),
    Layout(
        "hivit_timm",
        "this package's own files",
        own=True,
        has=(*_SIGNATURE, _FC_NORM),
        lacks=(*_NOT, _BLOCK_INDEX, _INDEX, r"norm\.weight", "mask_token"),
        rules=(*_ENCODER, *HEAD),
        may_be_missing=(_TABLES,),
    ),
)
