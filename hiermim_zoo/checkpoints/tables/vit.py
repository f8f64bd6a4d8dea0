"""Layouts of plain ViTs (https://github.com/facebookresearch/mae, timm, transformers, mmpretrain); what HPViT takes of
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from ..layout import DECODER_REASON, HEAD, MAE_DECODER, MAE_DECODER_BACK, Layout
from ..rules import Copy, Drop, Join, Refuse, Rename, Reshape, Rule

_VIT_ENCODER: tuple[Rule, ...] = (
    Copy("cls_token|pos_embed"),
    Copy(r"(patch_embed\.proj|norm)\.(weight|bias)"),
    Copy(r"blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"),
)
_VIT_SIGNATURE = ("cls_token", "pos_embed", r"patch_embed\.proj\.weight", r"blocks\.0\.norm1\.weight")
_PLAIN_ONLY = "only ViTs as MAE has them are read: "
_NO_SUCH_VIT = (
    Refuse(
        r".*(\bls[12]\.gamma|layer_scale|\bgamma_?[12]\b).*", _PLAIN_ONLY + "blocks of this package have no layer scale"
    ),
    Refuse(r".*(reg_token|register_token).*", _PLAIN_ONLY + "pooling has no place for register tokens"),
    Refuse(
        r".*(mlp\.(fc1_[gx]|w\d+|w12|weights_in|gate_proj|norm)|ffn\.w\d+)\b.*",
        _PLAIN_ONLY + "blocks of this package have a plain MLP, no SwiGLU",
    ),
)
CLASS_TOKEN_HEAD = "classifier of the class token, of no use to mean pooling"
PROBE = "linear probe, which reads the class token behind a batch norm"
_PROBE_DROPPED = "the linear probe reads the class token behind a batch norm: it is left out, the encoder is kept"
HEAD_DROPPED = "the classifier reads the class token, which mean pooling does not: it is left out, the encoder is kept"
_MAE_PREPROCESSING = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "interpolation": "bicubic"}

# transformers: names on disk, and those that 5.x has in memory
_HF_BLOCK = r"(?:vit\.)?(?:encoder\.layer|layers)\.(\d+)\."
_HF_JOINED = "query, key and value one below the other"
_HF_ENCODER: tuple[Rule, ...] = (
    Rename(r"(?:vit\.)?embeddings\.cls_token", "cls_token"),
    Rename(r"(?:vit\.)?embeddings\.position_embeddings", "pos_embed"),
    Rename(r"(?:vit\.)?embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    Join(
        _HF_BLOCK + r"attention\.attention\.(?P<part>query|key|value)\.(weight|bias)",
        r"blocks.\1.attn.qkv.\3",
        ("query", "key", "value"),
        _HF_JOINED,
    ),
    Join(
        _HF_BLOCK + r"attention\.(?P<part>q_proj|k_proj|v_proj)\.(weight|bias)",
        r"blocks.\1.attn.qkv.\3",
        ("q_proj", "k_proj", "v_proj"),
        _HF_JOINED,
    ),
    Rename(_HF_BLOCK + r"attention\.(?:output\.dense|o_proj)\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    Rename(_HF_BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    Rename(_HF_BLOCK + r"(?:output\.dense|mlp\.fc2)\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    Rename(_HF_BLOCK + r"layernorm_before\.(weight|bias)", r"blocks.\1.norm1.\2"),
    Rename(_HF_BLOCK + r"layernorm_after\.(weight|bias)", r"blocks.\1.norm2.\2"),
    Rename(r"(?:vit\.)?layernorm\.(weight|bias)", r"norm.\1"),
)
_HF_LAYER_PART = (
    r"(attention\.(attention\.(query|key|value)|[qkvo]_proj|output\.dense)"
    r"|intermediate\.dense|output\.dense|mlp\.fc[12]"
    r"|layernorm_before|layernorm_after)\.(weight|bias)"
)

# mmpretrain, https://github.com/open-mmlab/mmpretrain
_MM_ENCODER: tuple[Rule, ...] = (
    Rename(r"(?:backbone\.)?(cls_token|pos_embed)", r"\1"),
    Rename(r"(?:backbone\.)?patch_embed\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    Rename(r"(?:backbone\.)?layers\.(\d+)\.ln([12])\.(weight|bias)", r"blocks.\1.norm\2.\3"),
    Rename(r"(?:backbone\.)?layers\.(\d+)\.attn\.(qkv|proj)\.(weight|bias)", r"blocks.\1.attn.\2.\3"),
    Rename(r"(?:backbone\.)?layers\.(\d+)\.ffn\.layers\.0\.0\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    Rename(r"(?:backbone\.)?layers\.(\d+)\.ffn\.layers\.1\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    Rename(r"(?:backbone\.)?ln1\.(weight|bias)", r"norm.\1"),
    Rename(r"(?:backbone\.)?ln2\.(weight|bias)", r"fc_norm.\1"),
)
_MM_HEAD = r"head\.(?:layers\.head|fc)\.(weight|bias)"
_MM_BATCH_NORM = r"neck\.bn\.(running_mean|running_var|num_batches_tracked)"
_MM_SIGNATURE = (
    r"(backbone\.)?cls_token",
    r"(backbone\.)?patch_embed\.projection\.weight",
    r"(backbone\.)?layers\.0\.ln1\.weight",
)


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
        token,
        *head,
        Drop(
            r"norm\.(weight|bias)", "norm over the tokens of pre-training; fc_norm stands behind mean pooling instead"
        ),
        Reshape("pos_embed", "pos_embed", lambda table: table[:, 1:], "row of the class token left out"),
        Copy(".*"),
    )


_UNTRAINED = (r"fc_norm\.(weight|bias)", r"pools\.\d+\.(weight|bias)")
_UNTRAINED_NORM = (r"norm\.(weight|bias)", *_UNTRAINED[1:])

LAYOUTS = (
    Layout(
        "vit_mae",
        "MAE authors, masked pre-training with decoder (mae_pretrain_vit_*_full.pth, mae_visualize_vit_*.pth)",
        has=(*_VIT_SIGNATURE, r"norm\.weight", "mask_token"),
        lacks=(),
        rules=(*_VIT_ENCODER, *_NO_SUCH_VIT),
        may_be_missing=_UNTRAINED,
        decoder=MAE_DECODER,
        back=MAE_DECODER_BACK,
        preprocessing=_MAE_PREPROCESSING,
    ),
    Layout(
        "vit_timm",
        "timm's names of a plain ViT without classifier, which are those of MAE's encoder files",
        has=(*_VIT_SIGNATURE, r"norm\.weight"),
        lacks=("mask_token", r"(head|head\.\d|fc_norm)\.weight"),
        rules=(*_VIT_ENCODER, *_NO_SUCH_VIT),
        may_be_missing=_UNTRAINED,
    ),
    Layout(
        "vit_finetuned",
        "MAE authors, fine-tuned with mean pooling (mae_finetuned_vit_*.pth); timm's names of such a ViT",
        has=(*_VIT_SIGNATURE, r"fc_norm\.weight"),
        lacks=("mask_token", r"norm\.weight"),
        rules=(*_VIT_ENCODER, *HEAD, *_NO_SUCH_VIT),
        may_be_missing=_UNTRAINED_NORM,
        preprocessing=_MAE_PREPROCESSING,
    ),
    Layout(
        "vit_class_token",
        "timm's names of a plain ViT whose classifier reads the class token",
        has=(*_VIT_SIGNATURE, r"norm\.weight", r"head\.weight"),
        lacks=("mask_token", r"fc_norm\.weight"),
        rules=(*_VIT_ENCODER, *HEAD, *_NO_SUCH_VIT),
        may_be_missing=_UNTRAINED,
    ),
    Layout(
        "vit_probe",
        "MAE's linear probe of a plain ViT; only the encoder is of use",
        has=(*_VIT_SIGNATURE, r"norm\.weight", r"head\.1\.weight"),
        lacks=("mask_token", r"fc_norm\.weight"),
        rules=(
            *_VIT_ENCODER,
            Drop(r"head\.(0\.(running_mean|running_var|num_batches_tracked)|1\.(weight|bias))", PROBE),
            *_NO_SUCH_VIT,
        ),
        may_be_missing=_UNTRAINED,
        preprocessing=_MAE_PREPROCESSING,
        warning=_PROBE_DROPPED,
    ),
    Layout(
        "vit_mae_transformers",
        "transformers' ViTMAE, with or without decoder (facebook/vit-mae-*)",
        has=(
            r"(vit\.)?embeddings\.cls_token",
            r"(vit\.)?embeddings\.position_embeddings",
            r"(vit\.)?layernorm\.weight",
        ),
        lacks=(),
        rules=(
            *_HF_ENCODER,
            Drop(r"decoder\.(mask_token|decoder_pos_embed)", DECODER_REASON),
            Drop(r"decoder\.decoder_(embed|norm|pred)\.(weight|bias)", DECODER_REASON),
            Drop(r"decoder\.(decoder_layers|decoder_encoder\.layer)\.\d+\." + _HF_LAYER_PART, DECODER_REASON),
            *_NO_SUCH_VIT,
        ),
        may_be_missing=_UNTRAINED,
        preprocessing=_MAE_PREPROCESSING,
    ),
    Layout(
        "vit_mae_mmpretrain",
        "mmpretrain, masked pre-training with or without decoder",
        has=(*_MM_SIGNATURE, r"(backbone\.)?ln1\.weight"),
        lacks=(r"(backbone\.)?ln2\.weight", _MM_HEAD),
        rules=(
            *_MM_ENCODER,
            Drop(r"neck\.(mask_token|decoder_pos_embed)", DECODER_REASON),
            Drop(r"neck\.(decoder_embed|decoder_pred|ln1)\.(weight|bias)", DECODER_REASON),
            Drop(
                r"neck\.decoder_blocks\.\d+"
                r"\.(ln1|ln2|attn\.qkv|attn\.proj|ffn\.layers\.0\.0|ffn\.layers\.1)\.(weight|bias)",
                DECODER_REASON,
            ),
            *_NO_SUCH_VIT,
        ),
        may_be_missing=_UNTRAINED,
        preprocessing=_MAE_PREPROCESSING,
    ),
    Layout(
        "vit_class_token_mmpretrain",
        "mmpretrain, a classifier that reads the class token",
        has=(*_MM_SIGNATURE, r"(backbone\.)?ln1\.weight", _MM_HEAD),
        lacks=(r"(backbone\.)?ln2\.weight", _MM_BATCH_NORM),
        rules=(*_MM_ENCODER, Rename(_MM_HEAD, r"head.\1"), *_NO_SUCH_VIT),
        may_be_missing=_UNTRAINED,
        preprocessing=_MAE_PREPROCESSING,
    ),
    Layout(
        "vit_probe_mmpretrain",
        "mmpretrain, a linear probe; only the encoder is of use",
        has=(*_MM_SIGNATURE, r"(backbone\.)?ln1\.weight", _MM_HEAD, _MM_BATCH_NORM),
        lacks=(r"(backbone\.)?ln2\.weight",),
        rules=(*_MM_ENCODER, Drop(rf"{_MM_HEAD}|{_MM_BATCH_NORM}", PROBE), *_NO_SUCH_VIT),
        may_be_missing=_UNTRAINED,
        preprocessing=_MAE_PREPROCESSING,
        warning=_PROBE_DROPPED,
    ),
    Layout(
        "vit_finetuned_mmpretrain",
        "mmpretrain, fine-tuned with mean pooling",
        has=(*_MM_SIGNATURE, r"(backbone\.)?ln2\.weight"),
        lacks=(r"(backbone\.)?ln1\.weight",),
        rules=(*_MM_ENCODER, Rename(r"head\.fc\.(weight|bias)", r"head.\1"), *_NO_SUCH_VIT),
        may_be_missing=_UNTRAINED_NORM,
        preprocessing=_MAE_PREPROCESSING,
    ),
    Layout(
        "hpvit_timm",
        "this package's own files, and timm's names of a plain ViT without class token under mean pooling",
        own=True,
        has=("pos_embed", r"patch_embed\.proj\.weight", r"blocks\.0\.norm1\.weight", r"fc_norm\.weight"),
        lacks=("cls_token", "mask_token", r"norm\.weight", r"blocks\.\d+\.proj\.weight"),  # the last: Hiera
        rules=(*_VIT_ENCODER, *HEAD, Copy(r"cls_embed|pools\.\d+\.(weight|bias)"), *_NO_SUCH_VIT),
        may_be_missing=_UNTRAINED[1:],
    ),
)

PLAIN = tuple(layout for layout in LAYOUTS if not layout.own)  # of what can remain a plain ViT
