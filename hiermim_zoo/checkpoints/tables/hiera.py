"""Layouts of Hiera (https://github.com/facebookresearch/hiera, timm, transformers)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..layout import HEAD, MAE_DECODER, MAE_DECODER_BACK, Layout
from ..rules import Copy, Drop, Number, Refuse, Rename, Rule, Unnumber

_HIERA_ENCODER: tuple[Rule, ...] = (
    Copy("pos_embed|pos_embed_spatial|pos_embed_temporal"),
    Copy(r"patch_embed\.proj\.(weight|bias)"),
    Copy(r"blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2|proj)\.(weight|bias)"),
)
_HIERA_SIGNATURE = ("pos_embed|pos_embed_spatial", r"patch_embed\.proj\.weight", r"blocks\.\d+\.proj\.weight")
_OTHER = ("cls_token", "pos_embed_window")  # plain ViTs; Hiera of SAM 2
_HIERA_NORM = r"fc_norm\.(weight|bias)"
_HIERA_DECODER = (
    Rename(r"encoder_norm\.(weight|bias)", r"fusion.norm.\1"),
    Rename(r"multi_scale_fusion_heads\.(\d)\.(weight|bias)", r"fusion.heads.\1.\2"),
    *MAE_DECODER,
)
_HIERA_DECODER_BACK = (
    Rename(r"fusion\.norm\.(weight|bias)", r"encoder_norm.\1"),
    Rename(r"fusion\.heads\.(\d)\.(weight|bias)", r"multi_scale_fusion_heads.\1.\2"),
    *MAE_DECODER_BACK,
)

# transformers
_HF_HIERA_STEM: tuple[Rule, ...] = (
    Rename(r"(?:hiera\.)?embeddings\.position_embeddings", "pos_embed"),
    Rename(r"(?:hiera\.)?embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
)
_HF_HIERA_LAYER = r"(?:hiera\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\."
_HF_HIERA_ENCODER: tuple[Rule, ...] = (
    *_HF_HIERA_STEM,
    Number(_HF_HIERA_LAYER + r"layernorm_before\.(weight|bias)", r"blocks.{}.norm1.\3"),
    Number(_HF_HIERA_LAYER + r"layernorm_after\.(weight|bias)", r"blocks.{}.norm2.\3"),
    Number(_HF_HIERA_LAYER + r"(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2|proj)\.(weight|bias)", r"blocks.{}.\3.\4"),
)
_HF_HIERA_DECODER: tuple[Rename, ...] = (
    Rename(r"encoder_norm\.(weight|bias)", r"fusion.norm.\1"),
    Rename(r"multiscale_fusion\.multi_scale_fusion_heads\.(\d)\.(weight|bias)", r"fusion.heads.\1.\2"),
    Rename(r"decoder\.mask_token", "decoder.mask_token"),
    Rename(r"decoder\.decoder_position_embeddings", "decoder.pos_embed"),
    Rename(r"decoder\.decoder_embeddings\.(weight|bias)", r"decoder.embed.\1"),
    Rename(r"decoder\.decoder_(norm|pred)\.(weight|bias)", r"decoder.\1.\2"),
    Rename(r"decoder\.decoder_block\.layers\.(\d+)\.layernorm_before\.(weight|bias)", r"decoder.blocks.\1.norm1.\2"),
    Rename(r"decoder\.decoder_block\.layers\.(\d+)\.layernorm_after\.(weight|bias)", r"decoder.blocks.\1.norm2.\2"),
    Rename(r"decoder\.decoder_block\.layers\.(\d+)\.(attn|mlp)\.(.+)", r"decoder.blocks.\1.\2.\3"),
)
_HF_LAYER_BACK = r"hiera.encoder.stages.{0}.layers.{1}."
_WIDENING = r"blocks\.(\d+)\.proj\.weight"  # in the first block of every stage but the first
_HF_HIERA_BACK: tuple[Rule, ...] = (
    Refuse("pos_embed_(spatial|temporal)", "Hiera in transformers is of images alone"),
    Rename("pos_embed", "hiera.embeddings.position_embeddings"),
    Rename(r"patch_embed\.proj\.(weight|bias)", r"hiera.embeddings.patch_embeddings.projection.\1"),
    Unnumber(r"blocks\.(\d+)\.norm1\.(weight|bias)", _HF_LAYER_BACK + r"layernorm_before.\2", _WIDENING),
    Unnumber(r"blocks\.(\d+)\.norm2\.(weight|bias)", _HF_LAYER_BACK + r"layernorm_after.\2", _WIDENING),
    Unnumber(r"blocks\.(\d+)\.((?:attn|mlp|proj)\b.+)", _HF_LAYER_BACK + r"\2", _WIDENING),
)
_HF_HIERA_DECODER_BACK: tuple[Rule, ...] = (
    Rename(r"fusion\.norm\.(weight|bias)", r"encoder_norm.\1"),
    Rename(r"fusion\.heads\.(\d)\.(weight|bias)", r"multiscale_fusion.multi_scale_fusion_heads.\1.\2"),
    Copy(r"decoder\.mask_token"),
    Rename(r"decoder\.pos_embed", "decoder.decoder_position_embeddings"),
    Rename(r"decoder\.embed\.(weight|bias)", r"decoder.decoder_embeddings.\1"),
    Rename(r"decoder\.(norm|pred)\.(weight|bias)", r"decoder.decoder_\1.\2"),
    Rename(r"decoder\.blocks\.(\d+)\.norm1\.(weight|bias)", r"decoder.decoder_block.layers.\1.layernorm_before.\2"),
    Rename(r"decoder\.blocks\.(\d+)\.norm2\.(weight|bias)", r"decoder.decoder_block.layers.\1.layernorm_after.\2"),
    Rename(r"decoder\.blocks\.(\d+)\.(attn|mlp)\.(.+)", r"decoder.decoder_block.layers.\1.\2.\3"),
)
_HF_HIERA_SIGNATURE = (r"(hiera\.)?embeddings\.position_embeddings", _HF_HIERA_LAYER + r"attn\.qkv\.weight")

_CLASSIFIER = Layout(
    "hiera",
    "Hiera authors, classifiers of images and clips; their Hub repositories",
    has=(*_HIERA_SIGNATURE, r"norm\.weight", r"head\.projection\.weight"),
    lacks=(*_OTHER, "mask_token"),
    rules=(
        *_HIERA_ENCODER,
        Rename(r"norm\.(weight|bias)", r"fc_norm.\1"),
        Rename(r"head\.projection\.(weight|bias)", r"head.\1"),
    ),
    back=(Rename(r"fc_norm\.(weight|bias)", r"norm.\1"), Rename(r"head\.(weight|bias)", r"head.projection.\1")),
    top_key="model_state",
)
_MAE = Layout(
    "hiera_mae",
    "Hiera authors, masked pre-training: encoder, fusion, decoder (mae_hiera_*.pth)",
    has=(*_HIERA_SIGNATURE, r"encoder_norm\.weight", "mask_token"),
    lacks=_OTHER,
    rules=_HIERA_ENCODER,
    may_be_missing=(_HIERA_NORM,),
    decoder=_HIERA_DECODER,
    back=_HIERA_DECODER_BACK,
    top_key="model_state",
)
_LITE: dict[str, Any] = {"prefix": "model.", "bare": False, "back": (), "top_key": "model"}

LAYOUTS = (
    _CLASSIFIER,
    _MAE,
    replace(_CLASSIFIER, name="hiera_lite", about="MAE-Lite's classifiers: Hiera's names under model.", **_LITE),
    replace(_MAE, name="hiera_mae_lite", about="MAE-Lite's masked pre-training: Hiera's names under model.", **_LITE),
    Layout(
        "hiera_timm",
        "timm's names of a Hiera classifier",
        has=(*_HIERA_SIGNATURE, r"head\.norm\.weight", r"head\.fc\.weight"),
        lacks=_OTHER,
        rules=(
            *_HIERA_ENCODER,
            Rename(r"head\.norm\.(weight|bias)", r"fc_norm.\1"),
            Rename(r"head\.fc\.(weight|bias)", r"head.\1"),
        ),
        back=(Rename(r"fc_norm\.(weight|bias)", r"head.norm.\1"), Rename(r"head\.(weight|bias)", r"head.fc.\1")),
    ),
    Layout(
        "hiera_timm_mae",
        "timm's names of a Hiera encoder from masked pre-training",
        has=(*_HIERA_SIGNATURE, r"head\.norm\.weight"),
        lacks=(*_OTHER, r"head\.fc\.weight"),
        rules=(
            *_HIERA_ENCODER,
            Drop(
                r"head\.norm\.(weight|bias)",
                "norm of the joined levels in pre-training; fc_norm stands behind mean pooling instead",
            ),
        ),
        may_be_missing=(_HIERA_NORM,),
    ),
    Layout(
        "hiera_transformers",
        "transformers' Hiera: classifier or bare encoder (facebook/hiera-*-in1k-hf, facebook/hiera-*-hf)",
        has=_HF_HIERA_SIGNATURE,
        lacks=(r"decoder\.mask_token",),
        rules=(
            *_HF_HIERA_ENCODER,
            Rename(r"(?:hiera\.)?pooler\.layernorm\.(weight|bias)", r"fc_norm.\1"),
            Rename(r"classifier\.(weight|bias)", r"head.\1"),
        ),
        may_be_missing=(_HIERA_NORM,),
        back=(
            *_HF_HIERA_BACK,
            Rename(r"fc_norm\.(weight|bias)", r"hiera.pooler.layernorm.\1"),
            Rename(r"head\.(weight|bias)", r"classifier.\1"),
        ),
        top_key="",
    ),
    Layout(
        "hiera_transformers_mae",
        "transformers' Hiera for masked pre-training: encoder, fusion, decoder (facebook/hiera-*-mae-hf)",
        has=(*_HF_HIERA_SIGNATURE, r"decoder\.mask_token"),
        lacks=(),
        rules=_HF_HIERA_ENCODER,
        may_be_missing=(_HIERA_NORM,),
        decoder=_HF_HIERA_DECODER,
        back=(*_HF_HIERA_BACK, *_HF_HIERA_DECODER_BACK),
        top_key="",
    ),
    Layout(
        "hiera_own",
        "this package's own files",
        own=True,
        has=(*_HIERA_SIGNATURE, r"fc_norm\.weight"),
        lacks=(*_OTHER, "mask_token"),
        rules=(*_HIERA_ENCODER, *HEAD),
    ),
)
