"""Layouts of plain ViTs in transformers: names on disk, and those that its models have in memory from 5.0 on."""

from __future__ import annotations

from ..layout import Layout
from ..rules import Drop, Join, Rename, Rule, Split
from .vit_shared import MAE_PREPROCESSING, NO_SUCH_VIT, UNTRAINED

_JOINED = "query, key and value one below the other"
_APART = "query, key and value apart"
_ON_DISK = ("attention.attention.query", "attention.attention.key", "attention.attention.value")


def _blocks(old: str, new: str) -> tuple[Rename | Join, ...]:
    """The parts of a block.

    Args:
        old: pattern of a block's prefix, whose one group is its number.
        new: what becomes of the prefix.
    """
    return (
        Join(
            old + r"attention\.attention\.(?P<part>query|key|value)\.(weight|bias)",
            new + r"attn.qkv.\3",
            ("query", "key", "value"),
            _JOINED,
        ),
        Join(
            old + r"attention\.(?P<part>q_proj|k_proj|v_proj)\.(weight|bias)",
            new + r"attn.qkv.\3",
            ("q_proj", "k_proj", "v_proj"),
            _JOINED,
        ),
        Rename(old + r"attention\.(?:output\.dense|o_proj)\.(weight|bias)", new + r"attn.proj.\2"),
        Rename(old + r"(?:intermediate\.dense|mlp\.fc1)\.(weight|bias)", new + r"mlp.fc1.\2"),
        Rename(old + r"(?:output\.dense|mlp\.fc2)\.(weight|bias)", new + r"mlp.fc2.\2"),
        Rename(old + r"layernorm_before\.(weight|bias)", new + r"norm1.\2"),
        Rename(old + r"layernorm_after\.(weight|bias)", new + r"norm2.\2"),
    )


def _blocks_back(old: str, new: str) -> tuple[Rule, ...]:
    """Likewise, to the names on disk."""
    return (
        Split(old + r"attn\.qkv\.(weight|bias)", new + r"{}.\2", _ON_DISK, _APART),
        Rename(old + r"attn\.proj\.(weight|bias)", new + r"attention.output.dense.\2"),
        Rename(old + r"mlp\.fc1\.(weight|bias)", new + r"intermediate.dense.\2"),
        Rename(old + r"mlp\.fc2\.(weight|bias)", new + r"output.dense.\2"),
        Rename(old + r"norm1\.(weight|bias)", new + r"layernorm_before.\2"),
        Rename(old + r"norm2\.(weight|bias)", new + r"layernorm_after.\2"),
    )


_ENCODER: tuple[Rule, ...] = (
    Rename(r"embeddings\.cls_token", "cls_token"),
    Rename(r"embeddings\.position_embeddings", "pos_embed"),
    Rename(r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    *_blocks(r"(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    Rename(r"layernorm\.(weight|bias)", r"norm.\1"),
    *NO_SUCH_VIT,
)
_ENCODER_BACK: tuple[Rule, ...] = (
    Rename("cls_token", "vit.embeddings.cls_token"),
    Rename("pos_embed", "vit.embeddings.position_embeddings"),
    Rename(r"patch_embed\.proj\.(weight|bias)", r"vit.embeddings.patch_embeddings.projection.\1"),
    *_blocks_back(r"blocks\.(\d+)\.", r"vit.encoder.layer.\1."),
    Rename(r"norm\.(weight|bias)", r"vit.layernorm.\1"),
)
_DECODER: tuple[Rename | Join, ...] = (
    Rename(r"decoder\.mask_token", "decoder.mask_token"),
    Rename(r"decoder\.decoder_pos_embed", "decoder.pos_embed"),
    Rename(r"decoder\.decoder_(embed|norm|pred)\.(weight|bias)", r"decoder.\1.\2"),
    *_blocks(r"decoder\.(?:decoder_layers|decoder_encoder\.layer)\.(\d+)\.", r"decoder.blocks.\1."),
)
_DECODER_BACK: tuple[Rule, ...] = (
    Rename(r"decoder\.mask_token", "decoder.mask_token"),
    Rename(r"decoder\.pos_embed", "decoder.decoder_pos_embed"),
    Rename(r"decoder\.(embed|norm|pred)\.(weight|bias)", r"decoder.decoder_\1.\2"),
    *_blocks_back(r"decoder\.blocks\.(\d+)\.", r"decoder.decoder_layers.\1."),
)
_SIGNATURE = (r"embeddings\.cls_token", r"embeddings\.position_embeddings")
_CLASSIFIER, _POOLER = r"classifier\.(weight|bias)", r"pooler\.dense\.(weight|bias)"
_PIXELS = r"decoder\.0\.(weight|bias)"
_LEFT_OUT = (
    Drop(_POOLER, "layer behind the class token, of no use to mean pooling"),
    Drop(r"embeddings\.mask_token", "it stands for hidden patches, which are not looked at here"),
    Drop(_PIXELS, "linear head of masked image modelling over all tokens"),
)

_TWO_LICENCES = (
    "the cards of facebook/vit-mae-* say apache-2.0, but MAE's authors say cc-by-nc-4.0 of those weights: "
    "do not rely on the former unless they confirm it"
)

LAYOUTS = (
    Layout(
        "vit_mae_transformers",
        "transformers' ViTMAE, with or without decoder (facebook/vit-mae-*)",
        has=_SIGNATURE,
        lacks=(_CLASSIFIER, _POOLER, _PIXELS, r"embeddings\.mask_token"),
        rules=_ENCODER,
        may_be_missing=UNTRAINED,
        decoder=_DECODER,
        back=(*_ENCODER_BACK, *_DECODER_BACK),
        top_key="",
        preprocessing=MAE_PREPROCESSING,
        license_note=_TWO_LICENCES,
        prefix="vit.",
    ),
    Layout(
        "vit_class_token_transformers",
        "transformers' ViTForImageClassification, which reads the class token",
        has=(*_SIGNATURE, _CLASSIFIER, r"layernorm\.weight"),
        lacks=(),
        rules=(*_ENCODER, Rename(_CLASSIFIER, r"head.\1"), *_LEFT_OUT),
        may_be_missing=UNTRAINED,
        back=(*_ENCODER_BACK, Rename(r"head\.(weight|bias)", r"classifier.\1")),
        top_key="",
        prefix="vit.",
    ),
    Layout(
        "vit_transformers",
        "transformers' ViTModel with its pooler, or ViTForMaskedImageModeling; only the encoder is of use",
        has=(*_SIGNATURE, rf"{_POOLER}|{_PIXELS}|embeddings\.mask_token"),
        lacks=(_CLASSIFIER,),
        rules=(*_ENCODER, *_LEFT_OUT),
        may_be_missing=UNTRAINED,
        prefix="vit.",
    ),
)
