"""Layouts of HiViT (https://github.com/zhangxiaosong18/hivit)."""

from __future__ import annotations

from ..layout import HEAD, MAE_DECODER, MAE_DECODER_BACK, Layout
from ..rules import Copy, Drop, Rename

_HIVIT_SIGNATURE = ("absolute_pos_embed", r"patch_embed\.norm\.weight", r"blocks\.0\.norm2\.weight")
_HIVIT_NOT = (r"blocks\.0\.norm1\.weight",)  # the first block of a HiViT has no attention
_BLOCK_INDEX = r"blocks\.\d+\.attn\.relative_position_index"
_HIVIT_ENCODER = (
    Copy("absolute_pos_embed"),
    Copy(r"patch_embed\.(proj|norm)\.(weight|bias)"),
    Copy(r"blocks\.\d+\.(norm|norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"),
    Copy(r"blocks\.\d+\.reduction\.weight"),
    Copy(r"blocks\.\d+\.attn\.relative_position_bias_table"),
)
_INDEX_REASON = "integer index, recomputed from the grid"
_TABLES = r"blocks\.\d+\.attn\.relative_position_bias_table"

LAYOUTS = (
    Layout(
        "hivit_supervised",
        "HiViT authors, supervised training (an index in every attention block)",
        has=(*_HIVIT_SIGNATURE, _BLOCK_INDEX),
        lacks=(*_HIVIT_NOT, "relative_position_index"),
        rules=(*_HIVIT_ENCODER, *HEAD, Drop(_BLOCK_INDEX, _INDEX_REASON)),
    ),
    Layout(
        "hivit_finetuned",
        "HiViT authors, fine-tuned after masked pre-training (one index at the top)",
        has=(*_HIVIT_SIGNATURE, "relative_position_index"),
        lacks=(*_HIVIT_NOT, _BLOCK_INDEX),
        rules=(*_HIVIT_ENCODER, *HEAD, Drop("relative_position_index", _INDEX_REASON)),
    ),
    Layout(
        "hivit_mae",
        "HiViT authors, masked pre-training: encoder (trained without relative bias), norm of the joined levels, "
        "decoder",
        has=(*_HIVIT_SIGNATURE, r"norm\.weight|mask_token"),
        lacks=(*_HIVIT_NOT, _BLOCK_INDEX, "relative_position_index"),
        rules=(*_HIVIT_ENCODER,),
        may_be_missing=(_TABLES, r"fc_norm\.(weight|bias)"),
        decoder=(Rename(r"norm\.(weight|bias)", r"fusion.norm.\1"), *MAE_DECODER),
        back=(Rename(r"fusion\.norm\.(weight|bias)", r"norm.\1"), *MAE_DECODER_BACK),
    ),
    Layout(
        "hivit_timm",
        "this package's own files",
        own=True,
        has=_HIVIT_SIGNATURE,
        lacks=(*_HIVIT_NOT, _BLOCK_INDEX, "relative_position_index", r"norm\.weight", "mask_token"),
        rules=(*_HIVIT_ENCODER, *HEAD),
        may_be_missing=(_TABLES,),
    ),
)
