"""Layouts of plain ViTs in the names of MAE's code (https://github.com/facebookresearch/mae), which timm has, too; all
layouts of plain ViTs; what HPViT takes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..layout import HEAD, MAE_DECODER, MAE_DECODER_BACK, Layout, own_autoencoder
from ..rules import Copy, Drop, Refuse, Rename, Reshape, Rule
from .vit_mmpretrain import LAYOUTS as MMPRETRAIN
from .vit_shared import CLASS_TOKEN_HEAD, HEAD_DROPPED, MAE_PREPROCESSING, NO_SUCH_VIT, PROBE, PROBE_DROPPED, UNTRAINED
from .vit_transformers import LAYOUTS as TRANSFORMERS

_ENCODER: tuple[Rule, ...] = (
    Copy("cls_token|pos_embed"),
    Copy(r"(patch_embed\.proj|norm)\.(weight|bias)"),
    Copy(r"blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"),
)
_SIGNATURE = ("cls_token", "pos_embed", r"patch_embed\.proj\.weight", r"blocks\.0\.norm1\.weight")
_NORM, _FC_NORM, _HEAD = r"norm\.weight", r"fc_norm\.weight", r"head\.weight"
_PRE_LOGITS, _PROBED = r"pre_logits(\.fc)?\.(weight|bias)", r"head\.1\.weight"
_WITH_HEAD = (*_ENCODER, *HEAD, *NO_SUCH_VIT)

# ---- Prithvi, of satellite images (https://github.com/NASA-IMPACT/Prithvi-EO-2.0)

_FRAME_GRIDS = (14 * 14, 16 * 16)  # rows of a frame of 224 pixels, with patches of 16 and 14
_PRITHVI_DECODER = (
    Rename(r"decoder\.mask_token", "decoder.mask_token"),
    Rename(r"decoder\.decoder_pos_embed", "decoder.pos_embed"),
    Rename(r"decoder\.decoder_(embed|norm|pred)\.(weight|bias)", r"decoder.\1.\2"),
    Rename(r"decoder\.decoder_blocks\.(\d+)\.(.+)", r"decoder.blocks.\1.\2"),
)
_PRITHVI_BACK: tuple[Rule, ...] = (
    Rename("(cls_token|pos_embed|blocks\\..+|norm\\..+|patch_embed\\.proj\\.bias)", r"encoder.\1"),
    Reshape(
        r"patch_embed\.proj\.weight", "encoder.patch_embed.proj.weight", lambda w: w[:, :, None], "stem of one frame"
    ),
    Rename(r"decoder\.mask_token", "decoder.mask_token"),
    Rename(r"decoder\.pos_embed", "decoder.decoder_pos_embed"),
    Rename(r"decoder\.(embed|norm|pred)\.(weight|bias)", r"decoder.decoder_\1.\2"),
    Rename(r"decoder\.blocks\.(\d+)\.(.+)", r"decoder.decoder_blocks.\1.\2"),
)


def one_frame(state: Mapping[str, Tensor]) -> tuple[Rule, ...]:
    """Rules for the stem of a plain ViT of clips, [D, C, t, p, p]: of one frame it is that of a ViT of images.

    Args:
        state: in timm's names.
    """
    stem, table = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    if stem is None or stem.ndim != 5:
        return ()
    frames, rows = stem.shape[2], table.shape[1] - 1 if table is not None and table.ndim == 3 else 0
    if frames > 1:
        return (Refuse("patch_embed.proj.weight", f"a stem of {frames} frames, and plain ViTs here are of images"),)
    for grid in _FRAME_GRIDS:
        if rows > grid and not rows % grid:
            side = round(grid**0.5)
            reason = f"{rows} rows beside the class token's are {rows // grid} frames of {side} x {side} patches"
            return (Refuse("pos_embed", f"{reason}, and plain ViTs here are of images"),)
    return (Reshape("patch_embed.proj.weight", "patch_embed.proj.weight", lambda w: w[:, :, 0], "stem of one frame"),)


def reads_class_token(state: Mapping[str, Tensor]) -> bool:
    """Whether the classifier of a plain ViT in timm's names, if there is one, reads the class token."""
    return {"cls_token", "head.weight"} <= state.keys() and "fc_norm.weight" not in state


def hpvit_from_plain(state: Mapping[str, Tensor], args: Mapping[str, Any]) -> tuple[Rule, ...]:
    """What HPViT takes of a plain ViT, whoever named its tensors; of a checkpoint without class token all of it.

    Args:
        state: in timm's names.
        args: of the HPViT, "class_token" among them if it keeps that.
    """
    if "cls_token" not in state:
        return ()
    token: Rule = Drop("cls_token", "pooling has no place for a class token")
    if args.get("class_token"):
        row = state["pos_embed"][:, :1]  # [1, 1, C]
        token = Reshape("cls_token", "cls_embed", lambda value: value + row, "its row of the position table added")
    head = (Drop(r"head\.(weight|bias)", CLASS_TOKEN_HEAD),) if reads_class_token(state) else ()
    return (
        *one_frame(state),
        token,
        *head,
        Drop(
            r"norm\.(weight|bias)", "norm over the tokens of pre-training; fc_norm stands behind mean pooling instead"
        ),
        Reshape("pos_embed", "pos_embed", lambda table: table[:, 1:], "row of the class token left out"),
        Copy(".*"),
    )


# ---- the layouts

_TIMM = Layout(
    "vit_timm",
    "timm's names of a plain ViT without classifier, which are those of MAE's encoder files",
    has=_SIGNATURE,
    lacks=("mask_token", r"(head|head\.\d|fc_norm)\.weight", _PRE_LOGITS),
    rules=(*_ENCODER, *NO_SUCH_VIT),
    may_be_missing=UNTRAINED,
    back=_ENCODER,
)

_MAE = Layout(
    "vit_mae",
    "MAE authors, masked pre-training with decoder (mae_pretrain_vit_*_full.pth)",
    has=(*_SIGNATURE, "mask_token"),
    lacks=(_FC_NORM, _HEAD),
    rules=(*_ENCODER, *NO_SUCH_VIT),
    may_be_missing=UNTRAINED,
    decoder=MAE_DECODER,
    back=(*_ENCODER, *MAE_DECODER_BACK),
    preprocessing=MAE_PREPROCESSING,
)

LAYOUTS = (
    _MAE,
    replace(
        _MAE,
        name="vit_mae_pixels",
        about="MAE authors, for pictures (mae_visualize_vit_*.pth): vit_mae's names, the decoder predicts raw pixels",
        recipe={"norm_pix": False},
        by_name=True,
    ),
    Layout(
        "vit_mae_class_token",
        "MAE's names with decoder and a classifier that reads the class token",
        has=(*_SIGNATURE, "mask_token", _NORM, _HEAD),
        lacks=(_FC_NORM,),
        rules=_WITH_HEAD,
        may_be_missing=UNTRAINED,
        decoder=MAE_DECODER,
        back=(*_ENCODER, *HEAD, *MAE_DECODER_BACK),
        preprocessing=MAE_PREPROCESSING,
    ),
    Layout(
        "vit_mae_finetuned",
        "MAE's names with decoder and a classifier behind mean pooling",
        has=(*_SIGNATURE, "mask_token", _FC_NORM),
        lacks=(),
        rules=_WITH_HEAD,
        may_be_missing=UNTRAINED[1:],
        decoder=MAE_DECODER,
        back=(*_ENCODER, *HEAD, *MAE_DECODER_BACK),
        preprocessing=MAE_PREPROCESSING,
    ),
    _TIMM,
    Layout(
        "vit_finetuned",
        "MAE authors, fine-tuned with mean pooling (mae_finetuned_vit_*.pth); timm's names of such a ViT",
        has=(*_SIGNATURE, _FC_NORM),
        lacks=("mask_token", _NORM),
        rules=_WITH_HEAD,
        may_be_missing=UNTRAINED[1:],
        back=(*_ENCODER, *HEAD),
        preprocessing=MAE_PREPROCESSING,
    ),
    Layout(
        "vit_two_norms",
        "MAE's names with norm and fc_norm together",
        has=(*_SIGNATURE, _FC_NORM, _NORM),
        lacks=("mask_token",),
        rules=_WITH_HEAD,
        may_be_missing=UNTRAINED[1:],
        back=(*_ENCODER, *HEAD),
        preprocessing=MAE_PREPROCESSING,
        warning="read as MAE's classifiers are: fc_norm and head behind mean pooling, norm from pre-training",
    ),
    Layout(
        "vit_class_token",
        "timm's names of a plain ViT whose classifier reads the class token",
        has=(*_SIGNATURE, _NORM, _HEAD),
        lacks=("mask_token", _FC_NORM, _PRE_LOGITS),
        rules=_WITH_HEAD,
        may_be_missing=UNTRAINED,
        back=(*_ENCODER, *HEAD),
    ),
    Layout(
        "vit_probe",
        "MAE's linear probe of a plain ViT; only the encoder is of use",
        has=(*_SIGNATURE, _NORM, _PROBED),
        lacks=("mask_token", _FC_NORM),
        rules=(
            *_ENCODER,
            Drop(r"head\.(0\.(running_mean|running_var|num_batches_tracked)|1\.(weight|bias))", PROBE),
            *NO_SUCH_VIT,
        ),
        may_be_missing=UNTRAINED,
        preprocessing=MAE_PREPROCESSING,
        warning=PROBE_DROPPED,
    ),
    Layout(
        "vit_pre_logits",
        "a plain ViT of timm's older versions with a layer before its classifier; only the encoder is of use",
        has=(*_SIGNATURE, _PRE_LOGITS),
        lacks=("mask_token", _FC_NORM),
        rules=(
            *_ENCODER,
            Drop(
                rf"{_PRE_LOGITS}|head\.(weight|bias)", "classifier of the class token with a layer more than timm's has"
            ),
            *NO_SUCH_VIT,
        ),
        may_be_missing=UNTRAINED,
        warning=HEAD_DROPPED,
    ),
    Layout(
        "vit_prithvi",
        "Prithvi, satellite images of six channels: encoder and decoder; of those of one frame, the ViT of images",
        has=(*_SIGNATURE, r"decoder\.decoder_embed\.weight"),
        lacks=(),
        rules=(
            *_ENCODER,
            Drop(r"(temporal|location)_embed_enc\..+", "of date and place, which are not given here"),
            Drop(r"decoder\.(temporal|location)_embed_dec\..+", "of date and place, which are not given here"),
            *NO_SUCH_VIT,
        ),
        may_be_missing=UNTRAINED,
        decoder=_PRITHVI_DECODER,
        back=_PRITHVI_BACK,
        top_key="",
        prefix="encoder.",
        bare=False,
    ),
    *TRANSFORMERS,
    *MMPRETRAIN,
    own_autoencoder(_TIMM),
    Layout(
        "hpvit_timm",
        "this package's own files, and timm's names of a plain ViT without class token under mean pooling",
        own=True,
        has=("pos_embed", r"patch_embed\.proj\.weight", r"blocks\.0\.norm1\.weight", r"fc_norm\.weight"),
        lacks=("cls_token", "mask_token", r"norm\.weight", r"blocks\.\d+\.proj\.weight"),  # the last: Hiera
        rules=(*_ENCODER, *HEAD, Copy(r"cls_embed|pools\.\d+\.(weight|bias)"), *NO_SUCH_VIT),
        may_be_missing=UNTRAINED[1:],
    ),
)

PLAIN = tuple(layout for layout in LAYOUTS if not layout.own)  # of what can remain a plain ViT
