"""Layouts of plain ViTs in mmpretrain (https://github.com/open-mmlab/mmpretrain)."""

from __future__ import annotations

from ..layout import Layout
from ..rules import Drop, Rename, Rule
from .vit_shared import MAE_PREPROCESSING, NO_SUCH_VIT, PROBE, PROBE_DROPPED, UNTRAINED


def _blocks(old: str, new: str) -> tuple[Rename, ...]:
    """The parts of a block; ``old`` and ``new`` are its prefix before (a pattern with one group, its number) and
    after.
    """
    return (
        Rename(old + r"ln([12])\.(weight|bias)", new + r"norm\2.\3"),
        Rename(old + r"attn\.(qkv|proj)\.(weight|bias)", new + r"attn.\2.\3"),
        Rename(old + r"ffn\.layers\.0\.0\.(weight|bias)", new + r"mlp.fc1.\2"),
        Rename(old + r"ffn\.layers\.1\.(weight|bias)", new + r"mlp.fc2.\2"),
    )


def _blocks_back(old: str, new: str) -> tuple[Rename, ...]:
    return (
        Rename(old + r"norm([12])\.(weight|bias)", new + r"ln\2.\3"),
        Rename(old + r"attn\.(qkv|proj)\.(weight|bias)", new + r"attn.\2.\3"),
        Rename(old + r"mlp\.fc1\.(weight|bias)", new + r"ffn.layers.0.0.\2"),
        Rename(old + r"mlp\.fc2\.(weight|bias)", new + r"ffn.layers.1.\2"),
    )


_ENCODER: tuple[Rule, ...] = (
    Rename("(cls_token|pos_embed)", r"\1"),
    Rename(r"patch_embed\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    *_blocks(r"layers\.(\d+)\.", r"blocks.\1."),
    Rename(r"ln1\.(weight|bias)", r"norm.\1"),
    Rename(r"(?:ln2|fc_norm)\.(weight|bias)", r"fc_norm.\1"),  # the second: in mmselfsup, from which it grew
)
_ENCODER_BACK: tuple[Rule, ...] = (
    Rename("(cls_token|pos_embed)", r"backbone.\1"),
    Rename(r"patch_embed\.proj\.(weight|bias)", r"backbone.patch_embed.projection.\1"),
    *_blocks_back(r"blocks\.(\d+)\.", r"backbone.layers.\1."),
)
_NORM_BACK = Rename(r"norm\.(weight|bias)", r"backbone.ln1.\1")
_DECODER = (
    Rename(r"neck\.mask_token", "decoder.mask_token"),
    Rename(r"neck\.decoder_pos_embed", "decoder.pos_embed"),
    Rename(r"neck\.decoder_(embed|pred)\.(weight|bias)", r"decoder.\1.\2"),
    Rename(r"neck\.ln1\.(weight|bias)", r"decoder.norm.\1"),
    *_blocks(r"neck\.decoder_blocks\.(\d+)\.", r"decoder.blocks.\1."),
)
_DECODER_BACK: tuple[Rule, ...] = (
    Rename(r"decoder\.(mask_token)", r"neck.\1"),
    Rename(r"decoder\.pos_embed", "neck.decoder_pos_embed"),
    Rename(r"decoder\.(embed|pred)\.(weight|bias)", r"neck.decoder_\1.\2"),
    Rename(r"decoder\.norm\.(weight|bias)", r"neck.ln1.\1"),
    *_blocks_back(r"decoder\.blocks\.(\d+)\.", r"neck.decoder_blocks.\1."),
)
_HEAD = r"head\.(?:layers\.head|fc)\.(weight|bias)"
_BATCH_NORM = r"neck\.bn\.(running_mean|running_var|num_batches_tracked)"
_SIGNATURE = ("cls_token", r"patch_embed\.projection\.weight", r"layers\.0\.ln1\.weight")
_NORM, _FC_NORM = r"ln1\.weight", r"(ln2|fc_norm)\.weight"

LAYOUTS = (
    Layout(
        "vit_mae_mmpretrain",
        "mmpretrain, masked pre-training with or without decoder",
        has=_SIGNATURE,
        lacks=(_FC_NORM, _HEAD),
        rules=(*_ENCODER, *NO_SUCH_VIT),
        may_be_missing=UNTRAINED,
        decoder=_DECODER,
        back=(*_ENCODER_BACK, _NORM_BACK, *_DECODER_BACK),
        top_key="state_dict",
        preprocessing=MAE_PREPROCESSING,
        prefix="backbone.",
    ),
    Layout(
        "vit_class_token_mmpretrain",
        "mmpretrain, a classifier that reads the class token",
        has=(*_SIGNATURE, _NORM, _HEAD),
        lacks=(_FC_NORM, _BATCH_NORM),
        rules=(*_ENCODER, Rename(_HEAD, r"head.\1"), *NO_SUCH_VIT),
        may_be_missing=UNTRAINED,
        back=(*_ENCODER_BACK, _NORM_BACK, Rename(r"head\.(weight|bias)", r"head.layers.head.\1")),
        top_key="state_dict",
        preprocessing=MAE_PREPROCESSING,
        prefix="backbone.",
    ),
    Layout(
        "vit_probe_mmpretrain",
        "mmpretrain, a linear probe; only the encoder is of use",
        has=(*_SIGNATURE, _NORM, _HEAD, _BATCH_NORM),
        lacks=(_FC_NORM,),
        rules=(*_ENCODER, Drop(rf"{_HEAD}|{_BATCH_NORM}", PROBE), *NO_SUCH_VIT),
        may_be_missing=UNTRAINED,
        preprocessing=MAE_PREPROCESSING,
        prefix="backbone.",
        warning=PROBE_DROPPED,
    ),
    Layout(
        "vit_finetuned_mmpretrain",
        "mmpretrain, fine-tuned with mean pooling",
        has=(*_SIGNATURE, _FC_NORM),
        lacks=(_NORM,),
        rules=(*_ENCODER, Rename(r"head\.fc\.(weight|bias)", r"head.\1"), *NO_SUCH_VIT),
        may_be_missing=UNTRAINED[1:],
        back=(
            *_ENCODER_BACK,
            Rename(r"fc_norm\.(weight|bias)", r"backbone.ln2.\1"),
            Rename(r"head\.(weight|bias)", r"head.fc.\1"),
        ),
        top_key="state_dict",
        preprocessing=MAE_PREPROCESSING,
        prefix="backbone.",
    ),
)
