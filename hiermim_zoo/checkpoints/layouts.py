"""One table for every layout in which weights are published.

A layout is recognised by the names in a file alone: all of ``has`` occur, none of ``lacks`` does. Layouts exclude each other.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from .rules import Drop, Join, Keep, Number, Refuse, Rename, Reshape, Rule, Step, apply_rules, then

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """How one kind of published file names its tensors."""

    name: str
    families: tuple[str, ...]  # that can read it
    about: str  # whose files these are
    has: tuple[str, ...]  # signature: each pattern matches some name
    lacks: tuple[str, ...]  # ... and none of these matches any
    rules: tuple[Rule, ...]
    may_be_missing: tuple[str, ...] = ()  # target names that start from their initial value
    decoder: tuple[
        Rename, ...
    ] = ()  # the rest of a masked autoencoder: to "fusion.*" and "decoder.*", or dropped with its reason
    back: tuple[Rule, ...] = ()  # the way back, of what ``rules`` and ``decoder`` change
    top_key: str = "model"  # under which the files of its authors hold the tensors
    preprocessing: Mapping[str, Any] = field(default_factory=dict)  # of timm's config, where the architecture's default is wrong
    warning: str = ""  # said whenever such a file is read
    by_name: bool = False  # its files have the names of another layout: only a tag or --layout can tell

    def fits(self, names: Collection[str]) -> bool:
        return all(_any(p, names) for p in self.has) and not any(_any(p, names) for p in self.lacks)

    def may_miss(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.may_be_missing)


class Native(NamedTuple):
    """A checkpoint carried over into a family's own names."""

    state: dict[str, Tensor]
    layout: Layout
    steps: list[Step]
    decoder: dict[str, Tensor]  # "fusion.*" and "decoder.*"; empty unless asked for


def _any(pattern: str, names: Collection[str]) -> bool:
    return any(re.fullmatch(pattern, name) for name in names)


# ---- HiViT (https://github.com/zhangxiaosong18/hivit)

_HIVIT_SIGNATURE = ("absolute_pos_embed", r"patch_embed\.norm\.weight", r"blocks\.0\.norm2\.weight")
_HIVIT_NOT = (r"blocks\.0\.norm1\.weight",)  # the first block of a HiViT has no attention
_BLOCK_INDEX = r"blocks\.\d+\.attn\.relative_position_index"
_HIVIT_ENCODER = (
    Keep("absolute_pos_embed"),
    Keep(r"patch_embed\.(proj|norm)\.(weight|bias)"),
    Keep(r"blocks\.\d+\.(norm|norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"),
    Keep(r"blocks\.\d+\.reduction\.weight"),
    Keep(r"blocks\.\d+\.attn\.relative_position_bias_table"),
)
_MAE_DECODER = (
    Rename("mask_token", "decoder.mask_token"),
    Rename("decoder_pos_embed", "decoder.pos_embed"),
    Rename(r"decoder_(embed|norm|pred)\.(weight|bias)", r"decoder.\1.\2"),
    Rename(r"decoder_blocks\.(\d+)\.(.+)", r"decoder.blocks.\1.\2"),
)
_MAE_DECODER_BACK = (
    Rename(r"decoder\.mask_token", "mask_token"),
    Rename(r"decoder\.pos_embed", "decoder_pos_embed"),
    Rename(r"decoder\.(embed|norm|pred)\.(weight|bias)", r"decoder_\1.\2"),
    Rename(r"decoder\.blocks\.(\d+)\.(.+)", r"decoder_blocks.\1.\2"),
)
_HEAD = (Keep(r"(fc_norm|head)\.(weight|bias)"),)
_INDEX_REASON = "integer index, recomputed from the grid"
_TABLES = r"blocks\.\d+\.attn\.relative_position_bias_table"

# ---- plain ViT (https://github.com/facebookresearch/mae)

_VIT_ENCODER: tuple[Rule, ...] = (
    Keep("cls_token|pos_embed"),
    Keep(r"(patch_embed\.proj|norm)\.(weight|bias)"),
    Keep(r"blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"),
)
_VIT_SIGNATURE = ("cls_token", "pos_embed", r"patch_embed\.proj\.weight", r"blocks\.0\.norm1\.weight")
_PLAIN_ONLY = "only ViTs as MAE has them are read: "
_NO_SUCH_VIT = (
    Refuse(r".*(\bls[12]\.gamma|layer_scale|\bgamma_?[12]\b).*", _PLAIN_ONLY + "blocks of this package have no layer scale"),
    Refuse(r".*(reg_token|register_token).*", _PLAIN_ONLY + "pooling has no place for register tokens"),
    Refuse(
        r".*(mlp\.(fc1_[gx]|w\d+|w12|weights_in|gate_proj|norm)|ffn\.w\d+)\b.*",
        _PLAIN_ONLY + "blocks of this package have a plain MLP, no SwiGLU",
    ),
)
_PROBE = "classifier of the class token, of no use to mean pooling"
_PROBE_DROPPED = "the classifier reads the class token, which mean pooling does not: it is left out, the encoder is kept"
DECODER_REASON = "decoder of the masked autoencoder"
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
    r"(attention\.(attention\.(query|key|value)|[qkvo]_proj|output\.dense)|intermediate\.dense|output\.dense|mlp\.fc[12]"
    r"|layernorm_before|layernorm_after)\.(weight|bias)"
)

# ---- Hiera (https://github.com/facebookresearch/hiera)

_HIERA_ENCODER: tuple[Rule, ...] = (
    Keep("pos_embed|pos_embed_spatial|pos_embed_temporal"),
    Keep(r"patch_embed\.proj\.(weight|bias)"),
    Keep(r"blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2|proj)\.(weight|bias)"),
)
_HIERA_SIGNATURE = ("pos_embed|pos_embed_spatial", r"patch_embed\.proj\.weight", r"blocks\.\d+\.proj\.weight")
_HIERA_NORM = r"fc_norm\.(weight|bias)"
_HIERA_DECODER = (
    Rename(r"encoder_norm\.(weight|bias)", r"fusion.norm.\1"),
    Rename(r"multi_scale_fusion_heads\.(\d)\.(weight|bias)", r"fusion.heads.\1.\2"),
    *_MAE_DECODER,
)
_HIERA_DECODER_BACK = (
    Rename(r"fusion\.norm\.(weight|bias)", r"encoder_norm.\1"),
    Rename(r"fusion\.heads\.(\d)\.(weight|bias)", r"multi_scale_fusion_heads.\1.\2"),
    *_MAE_DECODER_BACK,
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
_HF_HIERA_SIGNATURE = (r"(hiera\.)?embeddings\.position_embeddings", _HF_HIERA_LAYER + r"attn\.qkv\.weight")

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
_MM_PROBE = r"head\.(layers\.head|fc)\.(weight|bias)"
_MM_SIGNATURE = (
    r"(backbone\.)?cls_token",
    r"(backbone\.)?patch_embed\.projection\.weight",
    r"(backbone\.)?layers\.0\.ln1\.weight",
)


# ---- Swin and Twins (https://github.com/LayneH/GreenMIM, https://github.com/microsoft/SimMIM, Microsoft's Swin, timm)

_SWIN_PART = (
    r"((?:patch_embed\.(?:proj|norm)|layers\.\d\.blocks\.\d+\.(?:norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)|norm)"
    r"\.(?:weight|bias)|layers\.\d\.blocks\.\d+\.attn\.relative_position_bias_table)"
)
_MERGING = r"downsample\.(norm\.(?:weight|bias)|reduction\.weight)"
_SWIN_BUFFERS = Drop(
    r"(encoder\.)?layers\.\d\.blocks\.\d+\.(attn\.relative_position_index|attn_mask)",
    "integer index or mask, recomputed from the grid",
)
_MERGING_WHY = "the middle two of four neighbours change places: files of May 2022 join them by rows, Swin by columns"


def _merge_quarters(values: Tensor) -> Tensor:
    """The second and the third quarter of the last axis change places (norm [4 C] and reduction [2 C, 4 C] of a merging)."""
    first, second, third, fourth = values.chunk(4, dim=-1)
    return torch.cat([first, third, second, fourth], dim=-1)


def _swin(prefix: str, swapped: bool = False) -> tuple[Rule, ...]:
    """Microsoft's names, where a merging ends a stage; in timm's it begins the next one."""
    mergings: list[Rule] = []
    for stage in range(3):
        old, new = rf"{prefix}layers\.{stage}\.{_MERGING}", rf"layers.{stage + 1}.downsample.\1"
        mergings.append(Reshape(old, new, _merge_quarters, _MERGING_WHY) if swapped else Rename(old, new))
    return (*mergings, Rename(prefix + _SWIN_PART, r"\1"), _SWIN_BUFFERS)


def _swin_back(swapped: bool = False) -> tuple[Rule, ...]:
    mergings: list[Rule] = []
    for stage in range(3):
        old, new = rf"layers\.{stage + 1}\.{_MERGING}", rf"encoder.layers.{stage}.downsample.\1"
        mergings.append(Reshape(old, new, _merge_quarters, _MERGING_WHY) if swapped else Rename(old, new))
    return (*mergings, Rename(_SWIN_PART, r"encoder.\1"), *_MAE_DECODER_BACK)


_TWINS_PLAIN = (
    r"(patch_embeds\.\d\.norm\.(?:weight|bias)|patch_embeds\.\d\.proj\.bias|patch_embeds\.0\.proj\.weight"
    r"|blocks\.\d\.\d+\.(?:norm1|norm2|mlp\.fc1|mlp\.fc2|attn\.(?:qkv|proj|q|kv|norm))\.(?:weight|bias)"
    r"|blocks\.\d\.\d+\.attn\.sr\.bias|pos_block\.\d\.proj\.0\.bias|norm\.(?:weight|bias))"
)
_TWINS_SPARSE = r"(patch_embeds\.[1-3]\.proj\.weight|blocks\.\d\.\d+\.attn\.sr\.weight)"
_TWINS_TAPS = r"(pos_block\.\d\.proj\.0\.weight)"
_SPARSE_WHY = "spconv's order of axes"
_TAP_WHY = "1 at the centre: the authors' position block has no residual, Twins has one"


def _from_spconv(kernel: Tensor) -> Tensor:
    """[out, k, k, in], or [k, k, out, in] as spconv 2.1 stored kernels of more than 32 taps -> [out, in, k, k]."""
    if kernel.shape[0] == kernel.shape[1] < kernel.shape[2]:
        return kernel.permute(2, 3, 0, 1).contiguous()
    return kernel.permute(0, 3, 1, 2).contiguous()


def _centre_tap(value: float) -> Callable[[Tensor], Tensor]:
    """Adds to the middle of kernels [C, 1, 3, 3]."""

    def change(kernel: Tensor) -> Tensor:
        kernel = kernel.clone()
        kernel[:, :, 1, 1] += value
        return kernel

    return change


_SIMMIM_TOKEN = "it stands for hidden patches, which are not looked at here"
_GREEN_2022 = (
    "taken for the code of May 2022, which joined the four neighbours of a merging in another order (likely, but unproven; "
    "--layout green_mim reads the file as later code writes it)"
)


def _hpvit_from_plain(state: Mapping[str, Tensor], class_token: bool) -> tuple[Rule, ...]:
    """What HPViT takes of a plain ViT, whoever named its tensors."""
    token: Rule = Drop("cls_token", "pooling has no place for a class token")
    if class_token:
        row = state["pos_embed"][:, :1]  # [1, 1, C]
        token = Reshape("cls_token", "cls_embed", lambda value: value + row, "its row of the position table added")
    return (
        token,
        Drop(r"norm\.(weight|bias)", "norm over the tokens of pre-training; fc_norm stands behind mean pooling instead"),
        Reshape("pos_embed", "pos_embed", lambda table: table[:, 1:], "row of the class token left out"),
        Keep(".*"),
    )


_UNTRAINED = (r"fc_norm\.(weight|bias)", r"pools\.\d+\.(weight|bias)")

LAYOUTS = (
    Layout(
        "hivit_supervised",
        ("hivit",),
        "HiViT authors, supervised training (an index in every attention block)",
        has=(*_HIVIT_SIGNATURE, _BLOCK_INDEX),
        lacks=(*_HIVIT_NOT, "relative_position_index"),
        rules=(*_HIVIT_ENCODER, *_HEAD, Drop(_BLOCK_INDEX, _INDEX_REASON)),
    ),
    Layout(
        "hivit_finetuned",
        ("hivit",),
        "HiViT authors, fine-tuned after masked pre-training (one index at the top)",
        has=(*_HIVIT_SIGNATURE, "relative_position_index"),
        lacks=(*_HIVIT_NOT, _BLOCK_INDEX),
        rules=(*_HIVIT_ENCODER, *_HEAD, Drop("relative_position_index", _INDEX_REASON)),
    ),
    Layout(
        "hivit_mae",
        ("hivit",),
        "HiViT authors, masked pre-training: encoder (trained without relative bias), norm of the joined levels, decoder",
        has=(*_HIVIT_SIGNATURE, r"norm\.weight|mask_token"),
        lacks=(*_HIVIT_NOT, _BLOCK_INDEX, "relative_position_index"),
        rules=(*_HIVIT_ENCODER,),
        may_be_missing=(_TABLES, r"fc_norm\.(weight|bias)"),
        decoder=(Rename(r"norm\.(weight|bias)", r"fusion.norm.\1"), *_MAE_DECODER),
        back=(Rename(r"fusion\.norm\.(weight|bias)", r"norm.\1"), *_MAE_DECODER_BACK),
    ),
    Layout(
        "vit_mae",
        ("vision_transformer", "hpvit"),
        "MAE authors, masked pre-training with decoder (mae_pretrain_vit_*_full.pth, mae_visualize_vit_*.pth)",
        has=(*_VIT_SIGNATURE, r"norm\.weight", "mask_token"),
        lacks=(),
        rules=(*_VIT_ENCODER, *_NO_SUCH_VIT),
        may_be_missing=_UNTRAINED,
        decoder=_MAE_DECODER,
        back=_MAE_DECODER_BACK,
        preprocessing=_MAE_PREPROCESSING,
    ),
    Layout(
        "vit_timm",
        ("vision_transformer", "hpvit"),
        "timm's names of a plain ViT without classifier, which are those of MAE's encoder files",
        has=(*_VIT_SIGNATURE, r"norm\.weight"),
        lacks=("mask_token", r"(head|head\.\d|fc_norm)\.weight"),
        rules=(*_VIT_ENCODER, *_NO_SUCH_VIT),
        may_be_missing=_UNTRAINED,
    ),
    Layout(
        "vit_finetuned",
        ("hpvit",),
        "MAE authors, fine-tuned with mean pooling (mae_finetuned_vit_*.pth); timm's names of such a ViT",
        has=(*_VIT_SIGNATURE, r"fc_norm\.weight"),
        lacks=("mask_token", r"norm\.weight"),
        rules=(*_VIT_ENCODER, *_HEAD, *_NO_SUCH_VIT),
        may_be_missing=_UNTRAINED[1:],
        preprocessing=_MAE_PREPROCESSING,
    ),
    Layout(
        "vit_class_token",
        ("hpvit",),
        "a plain ViT whose classifier reads the class token, as in MAE's linear probes; only the encoder is of use",
        has=(*_VIT_SIGNATURE, r"norm\.weight", r"head\.(1\.)?weight"),
        lacks=("mask_token", r"fc_norm\.weight"),
        rules=(
            *_VIT_ENCODER,
            Drop(r"head\.(0\.(running_mean|running_var|num_batches_tracked)|(1\.)?(weight|bias))", _PROBE),
            *_NO_SUCH_VIT,
        ),
        may_be_missing=_UNTRAINED,
        warning=_PROBE_DROPPED,
    ),
    Layout(
        "vit_mae_transformers",
        ("hpvit",),
        "transformers' ViTMAE, with or without decoder (facebook/vit-mae-*)",
        has=(r"(vit\.)?embeddings\.cls_token", r"(vit\.)?embeddings\.position_embeddings", r"(vit\.)?layernorm\.weight"),
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
        ("hpvit",),
        "mmpretrain, masked pre-training with or without decoder",
        has=(*_MM_SIGNATURE, r"(backbone\.)?ln1\.weight"),
        lacks=(r"(backbone\.)?ln2\.weight", _MM_PROBE),
        rules=(
            *_MM_ENCODER,
            Drop(r"neck\.(mask_token|decoder_pos_embed)", DECODER_REASON),
            Drop(r"neck\.(decoder_embed|decoder_pred|ln1)\.(weight|bias)", DECODER_REASON),
            Drop(
                r"neck\.decoder_blocks\.\d+\.(ln1|ln2|attn\.qkv|attn\.proj|ffn\.layers\.0\.0|ffn\.layers\.1)\.(weight|bias)",
                DECODER_REASON,
            ),
            *_NO_SUCH_VIT,
        ),
        may_be_missing=_UNTRAINED,
        preprocessing=_MAE_PREPROCESSING,
    ),
    Layout(
        "vit_class_token_mmpretrain",
        ("hpvit",),
        "mmpretrain, a classifier that reads the class token, as in linear probes; only the encoder is of use",
        has=(*_MM_SIGNATURE, r"(backbone\.)?ln1\.weight", _MM_PROBE),
        lacks=(r"(backbone\.)?ln2\.weight",),
        rules=(
            *_MM_ENCODER,
            Drop(rf"{_MM_PROBE}|neck\.bn\.(running_mean|running_var|num_batches_tracked)", _PROBE),
            *_NO_SUCH_VIT,
        ),
        may_be_missing=_UNTRAINED,
        preprocessing=_MAE_PREPROCESSING,
        warning=_PROBE_DROPPED,
    ),
    Layout(
        "vit_finetuned_mmpretrain",
        ("hpvit",),
        "mmpretrain, fine-tuned with mean pooling",
        has=(*_MM_SIGNATURE, r"(backbone\.)?ln2\.weight"),
        lacks=(r"(backbone\.)?ln1\.weight",),
        rules=(*_MM_ENCODER, Rename(r"head\.fc\.(weight|bias)", r"head.\1"), *_NO_SUCH_VIT),
        may_be_missing=_UNTRAINED[1:],
        preprocessing=_MAE_PREPROCESSING,
    ),
    Layout(
        "hiera",
        ("hiera",),
        "Hiera authors, classifiers of images and clips; their Hub repositories",
        has=(*_HIERA_SIGNATURE, r"norm\.weight", r"head\.projection\.weight"),
        lacks=("cls_token", "mask_token"),
        rules=(
            *_HIERA_ENCODER,
            Rename(r"norm\.(weight|bias)", r"fc_norm.\1"),
            Rename(r"head\.projection\.(weight|bias)", r"head.\1"),
        ),
        back=(Rename(r"fc_norm\.(weight|bias)", r"norm.\1"), Rename(r"head\.(weight|bias)", r"head.projection.\1")),
        top_key="model_state",
    ),
    Layout(
        "hiera_mae",
        ("hiera",),
        "Hiera authors, masked pre-training: encoder, fusion, decoder (mae_hiera_*.pth)",
        has=(*_HIERA_SIGNATURE, r"encoder_norm\.weight", "mask_token"),
        lacks=("cls_token",),
        rules=_HIERA_ENCODER,
        may_be_missing=(_HIERA_NORM,),
        decoder=_HIERA_DECODER,
        back=_HIERA_DECODER_BACK,
        top_key="model_state",
    ),
    Layout(
        "hiera_timm",
        ("hiera",),
        "timm's names of a Hiera classifier",
        has=(*_HIERA_SIGNATURE, r"head\.norm\.weight", r"head\.fc\.weight"),
        lacks=("cls_token",),
        rules=(
            *_HIERA_ENCODER,
            Rename(r"head\.norm\.(weight|bias)", r"fc_norm.\1"),
            Rename(r"head\.fc\.(weight|bias)", r"head.\1"),
        ),
        back=(Rename(r"fc_norm\.(weight|bias)", r"head.norm.\1"), Rename(r"head\.(weight|bias)", r"head.fc.\1")),
    ),
    Layout(
        "hiera_timm_mae",
        ("hiera",),
        "timm's names of a Hiera encoder from masked pre-training",
        has=(*_HIERA_SIGNATURE, r"head\.norm\.weight"),
        lacks=("cls_token", r"head\.fc\.weight"),
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
        ("hiera",),
        "transformers' Hiera: classifier, bare encoder, or masked pre-training with decoder (facebook/hiera-*-hf)",
        has=_HF_HIERA_SIGNATURE,
        lacks=(),
        rules=(
            *_HF_HIERA_ENCODER,
            Rename(r"(?:hiera\.)?pooler\.layernorm\.(weight|bias)", r"fc_norm.\1"),
            Rename(r"classifier\.(weight|bias)", r"head.\1"),
        ),
        may_be_missing=(_HIERA_NORM,),
        decoder=_HF_HIERA_DECODER,
    ),
    Layout(
        "hiera_own",
        ("hiera",),
        "this package's own files",
        has=(*_HIERA_SIGNATURE, r"fc_norm\.weight"),
        lacks=("cls_token", "mask_token"),
        rules=(*_HIERA_ENCODER, *_HEAD),
    ),
    Layout(
        "hpvit_timm",
        ("hpvit",),
        "this package's own files, and timm's names of a plain ViT without class token under mean pooling",
        has=("pos_embed", r"patch_embed\.proj\.weight", r"blocks\.0\.norm1\.weight", r"fc_norm\.weight"),
        lacks=("cls_token", "mask_token", r"norm\.weight", r"blocks\.\d+\.proj\.weight"),  # the last: Hiera
        rules=(*_VIT_ENCODER, *_HEAD, Keep(r"cls_embed|pools\.\d+\.(weight|bias)"), *_NO_SUCH_VIT),
        may_be_missing=_UNTRAINED[1:],
    ),
    Layout(
        "green_mim",
        ("green",),
        "GreenMIM authors, masked pre-training of a Swin with decoder, code since January 2023",
        has=(r"encoder\.layers\.0\.downsample\.reduction\.weight", r"decoder_pred\.weight"),
        lacks=(r"encoder\.mask_token",),
        rules=_swin(r"encoder\."),
        decoder=_MAE_DECODER,
        back=_swin_back(),
    ),
    Layout(
        "green_mim_2022",
        ("green",),
        "GreenMIM authors, the published files: code of May 2022, the same names as green_mim",
        has=(r"encoder\.layers\.0\.downsample\.reduction\.weight", r"decoder_pred\.weight"),
        lacks=(r"encoder\.mask_token",),
        rules=_swin(r"encoder\.", swapped=True),
        decoder=_MAE_DECODER,
        back=_swin_back(swapped=True),
        warning=_GREEN_2022,
        by_name=True,
    ),
    Layout(
        "green_mim_twins",
        ("green",),
        "GreenMIM authors, masked pre-training of a Twins with decoder (kernels as spconv stores them)",
        has=(r"encoder\.patch_embeds\.1\.proj\.weight", r"decoder_pred\.weight"),
        lacks=(),
        rules=(
            Reshape(r"encoder\." + _TWINS_SPARSE, r"\1", _from_spconv, _SPARSE_WHY),
            Reshape(r"encoder\." + _TWINS_TAPS, r"\1", _centre_tap(-1), _TAP_WHY),
            Rename(r"encoder\." + _TWINS_PLAIN, r"\1"),
        ),
        decoder=_MAE_DECODER,
        back=(
            Reshape(_TWINS_SPARSE, r"encoder.\1", lambda kernel: kernel.permute(0, 2, 3, 1).contiguous(), _SPARSE_WHY),
            Reshape(_TWINS_TAPS, r"encoder.\1", _centre_tap(1), _TAP_WHY),
            Rename(_TWINS_PLAIN, r"encoder.\1"),
            *_MAE_DECODER_BACK,
        ),
    ),
    Layout(
        "simmim_swin",
        ("green",),
        "SimMIM authors, masked pre-training of a Swin on all tokens",
        has=(r"encoder\.layers\.0\.downsample\.reduction\.weight", r"encoder\.mask_token"),
        lacks=(),
        rules=(
            *_swin(r"encoder\."),
            Drop(r"encoder\.mask_token", _SIMMIM_TOKEN),
            Drop(r"decoder\.0\.(weight|bias)", "SimMIM's linear head over all tokens"),
        ),
    ),
    Layout(
        "swin_microsoft",
        ("green",),
        "Microsoft's Swin, with or without classifier",
        has=(r"patch_embed\.norm\.weight", r"layers\.0\.downsample\.reduction\.weight"),
        lacks=(),
        rules=(*_swin(""), Rename(r"head\.(weight|bias)", r"head.fc.\1")),
    ),
    Layout(
        "green_swin_timm",
        ("green",),
        "this package's own files of a Swin, which have timm's names",
        has=(r"patch_embed\.norm\.weight", r"layers\.1\.downsample\.reduction\.weight"),
        lacks=(r"layers\.0\.downsample\..*",),
        rules=(Keep(_SWIN_PART), Keep(rf"layers\.[1-3]\.{_MERGING}"), Keep(r"head\.fc\.(weight|bias)"), _SWIN_BUFFERS),
    ),
    Layout(
        "green_twins_timm",
        ("green",),
        "this package's own files of a Twins, which have timm's names",
        has=(r"patch_embeds\.1\.proj\.weight", r"pos_block\.0\.proj\.0\.weight"),
        lacks=(),
        rules=(Keep(_TWINS_PLAIN), Keep(_TWINS_SPARSE), Keep(_TWINS_TAPS), *_HEAD),
    ),
    Layout(
        "hivit_timm",
        ("hivit",),
        "this package's own files",
        has=_HIVIT_SIGNATURE,
        lacks=(*_HIVIT_NOT, _BLOCK_INDEX, "relative_position_index", r"norm\.weight", "mask_token"),
        rules=(*_HIVIT_ENCODER, *_HEAD),
        may_be_missing=(_TABLES,),
    ),
)


def find_layout(name: str) -> Layout:
    """The layout of that name.

    Raises:
        ValueError: there is none.
    """
    for layout in LAYOUTS:
        if layout.name == name:
            return layout
    raise ValueError(f"layout {name!r} is unknown, there are {', '.join(layout.name for layout in LAYOUTS)}")


def recognise(names: Collection[str], family: str) -> Layout:
    """The layout of a file with these tensor names.

    Raises:
        ValueError: no layout fits, or one of another family does.
    """
    fitting = [layout for layout in LAYOUTS if layout.fits(names) and not layout.by_name]
    assert len(fitting) < 2, f"layouts must exclude each other: {[layout.name for layout in fitting]}"
    if fitting and family in fitting[0].families:
        return fitting[0]
    if fitting:
        raise ValueError(f"the file is {fitting[0].name!r} ({fitting[0].about}), which is no {family} checkpoint")
    known = ", ".join(layout.name for layout in LAYOUTS if family in layout.families)
    first = ", ".join(list(names)[:4])
    raise ValueError(f"the names of the {len(names)} tensors ({first}, ...) fit no layout of {family}; known are {known}")


def to_native(
    state: Mapping[str, Tensor],
    family: str,
    layout: str | None = None,
    *,
    decoder: bool = False,
    class_token: bool = False,
) -> Native:
    """Carry a checkpoint of any known layout over into the family's own names.

    Args:
        state: as read from the file.
        family: "hivit", ...
        layout: forces a layout instead of recognising it.
        decoder: keep the decoder of a masked autoencoder, apart from the encoder.
        class_token: keep the class token of a plain ViT that becomes an HPViT.

    Raises:
        ValueError: unknown layout, one of another family or without decoder, or a tensor that it does not know.
    """
    table = find_layout(layout) if layout else recognise(state.keys(), family)
    if family not in table.families:
        raise ValueError(f"layout {table.name!r} is of {' and '.join(table.families)}, not of {family}")
    if decoder and not table.decoder:
        raise ValueError(f"the file is {table.name!r} ({table.about}), which holds no decoder")
    if table.warning:
        _logger.warning("%s: %s", table.name, table.warning)
    rest: tuple[Rule, ...] = table.decoder
    if not decoder:
        rest = tuple(Drop(rule.pattern, DECODER_REASON) for rule in table.decoder)
    native, steps = apply_rules(state, (*table.rules, *rest), table.name)
    if "cls_token" in native and family == "hpvit":
        native, more = apply_rules(native, _hpvit_from_plain(native, class_token), table.name)
        steps = then(steps, more)
    apart = {name: native.pop(name) for name in list(native) if name.startswith(("fusion.", "decoder."))}
    return Native(native, table, steps, apart)
