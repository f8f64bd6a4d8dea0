"""Layouts of Swin and Twins (https://github.com/LayneH/GreenMIM, https://github.com/microsoft/SimMIM, Microsoft's Swin,
timm, transformers, mmpretrain).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformerBlock, get_relative_position_index
from torch import Tensor

from ..layout import HEAD, HEADS_OF_TASKS, MAE_DECODER, MAE_DECODER_BACK, Layout
from ..rules import Copy, Drop, Join, Rename, Reshape, Rule, Split, apply_rules

_SWIN_PART = (
    r"((?:patch_embed\.(?:proj|norm)"
    r"|layers\.\d\.blocks\.\d+\.(?:norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)|norm)"
    r"\.(?:weight|bias)|layers\.\d\.blocks\.\d+\.attn\.relative_position_bias_table)"
)
_MERGING = r"downsample\.(norm\.(?:weight|bias)|reduction\.weight)"
_INDEX = "integer index or mask, recomputed from the grid"
_SWIN_BUFFERS = Drop(r"(encoder\.)?layers\.\d\.blocks\.\d+\.(attn\.relative_position_index|attn_mask)", _INDEX)
_MERGING_WHY = "the middle two of four neighbours change places: files of May 2022 join them by rows, Swin by columns"


def _merge_quarters(values: Tensor) -> Tensor:
    """The second and the third quarter of the last axis change places (norm [4 C] and reduction [2 C, 4 C] of a
    merging).
    """
    first, second, third, fourth = values.chunk(4, dim=-1)
    return torch.cat([first, third, second, fourth], dim=-1)


def swap_mergings(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Swin in timm's names as if its file had joined the four neighbours of a merging in the other order."""
    mergings = Reshape(rf"(layers\.[1-3]\.{_MERGING})", r"\1", _merge_quarters, _MERGING_WHY)
    return apply_rules(state, (mergings, Copy(".*")), "green_swin_timm")[0]


def _swin(prefix: str, swapped: bool = False) -> tuple[Rule, ...]:
    """Microsoft's names, where a merging ends a stage; in timm's it begins the next one."""
    mergings: list[Rule] = []
    for stage in range(3):
        old, new = rf"{prefix}layers\.{stage}\.{_MERGING}", rf"layers.{stage + 1}.downsample.\1"
        mergings.append(Reshape(old, new, _merge_quarters, _MERGING_WHY) if swapped else Rename(old, new))
    return (*mergings, Rename(prefix + _SWIN_PART, r"\1"), _SWIN_BUFFERS)


def _swin_back(prefix: str, swapped: bool = False) -> tuple[Rule, ...]:
    mergings: list[Rule] = []
    for stage in range(3):
        old, new = rf"layers\.{stage + 1}\.{_MERGING}", rf"{prefix}layers.{stage}.downsample.\1"
        mergings.append(Reshape(old, new, _merge_quarters, _MERGING_WHY) if swapped else Rename(old, new))
    return (*mergings, Rename(_SWIN_PART, rf"{prefix}\1"))


def _swin_buffers(prefix: str, masks: bool = True) -> Callable[[Any], dict[str, Tensor]]:
    """What strict loading into the authors' Swin asks for beside the weights, in their names.

    Args:
        prefix: of the names.
        masks: those of shifted windows, for the grids of the model's own image size; GreenMIM's Swin has none.
    """

    def buffers(model: Any) -> dict[str, Tensor]:
        found = {}
        for name, block in model.named_modules():
            if isinstance(block, SwinTransformerBlock):
                found[f"{prefix}{name}.attn.relative_position_index"] = get_relative_position_index(*block.window_size)
                if masks and (mask := block.get_attn_mask()) is not None:
                    found[f"{prefix}{name}.attn_mask"] = mask
        return found

    return buffers


_SIMMIM_TOKEN = "it stands for hidden patches, which are not looked at here"
_SIMMIM_DECODER = "SimMIM's linear head over all tokens"
_WB = r"\.(weight|bias)"

# transformers: names on disk, and those that 5.x has in memory. Stages end with their merging, as Microsoft's.
_QKV = ("query", "key", "value")
_QKV_WHY = "query, key and value one below the other"
_HF_SWIN = r"(?:swin\.)?"
_HF_SWIN_BLOCK = _HF_SWIN + r"encoder\.(layers\.\d\.blocks\.\d+)\."
_BLOCK = r"(layers\.\d\.blocks\.\d+)\."
_HF_SWIN_RULES: tuple[Rule, ...] = (
    Rename(_HF_SWIN + r"embeddings\.patch_embeddings\.projection" + _WB, r"patch_embed.proj.\1"),
    Rename(_HF_SWIN + r"embeddings\.norm" + _WB, r"patch_embed.norm.\1"),
    Join(_HF_SWIN_BLOCK + r"attention\.self\.(?P<part>query|key|value)" + _WB, r"\1.attn.qkv.\3", _QKV, _QKV_WHY),
    Join(
        _HF_SWIN_BLOCK + r"attention\.(?P<part>[qkv]_proj)" + _WB,
        r"\1.attn.qkv.\3",
        ("q_proj", "k_proj", "v_proj"),
        _QKV_WHY,
    ),
    Rename(_HF_SWIN_BLOCK + r"attention\.(?:output\.dense|o_proj)" + _WB, r"\1.attn.proj.\2"),
    Rename(
        _HF_SWIN_BLOCK + r"attention\.(?:self|relative_position_bias)\.relative_position_bias_table",
        r"\1.attn.relative_position_bias_table",
    ),
    Rename(_HF_SWIN_BLOCK + "layernorm_before" + _WB, r"\1.norm1.\2"),
    Rename(_HF_SWIN_BLOCK + "layernorm_after" + _WB, r"\1.norm2.\2"),
    Rename(_HF_SWIN_BLOCK + r"(?:intermediate\.dense|mlp\.fc1)" + _WB, r"\1.mlp.fc1.\2"),
    Rename(_HF_SWIN_BLOCK + r"(?:output\.dense|mlp\.fc2)" + _WB, r"\1.mlp.fc2.\2"),
    *(
        Rename(rf"{_HF_SWIN}encoder\.layers\.{stage}\.{_MERGING}", rf"layers.{stage + 1}.downsample.\1")
        for stage in range(3)
    ),
    Rename(_HF_SWIN + "layernorm" + _WB, r"norm.\1"),
    Rename("classifier" + _WB, r"head.fc.\1"),
    Drop(_HF_SWIN_BLOCK + r"attention\.(self|relative_position_bias)\.relative_position_index", _INDEX),
    Drop(_HF_SWIN + r"embeddings\.mask_token", _SIMMIM_TOKEN),
    Drop(r"decoder\.0" + _WB, _SIMMIM_DECODER),
)
_HF_SWIN_BACK: tuple[Rule, ...] = (
    Rename(r"patch_embed\.proj" + _WB, r"swin.embeddings.patch_embeddings.projection.\1"),
    Rename(r"patch_embed\.norm" + _WB, r"swin.embeddings.norm.\1"),
    Split(_BLOCK + r"attn\.qkv" + _WB, r"swin.encoder.\1.attention.self.{}.\2", _QKV, _QKV_WHY),
    Rename(_BLOCK + r"attn\.proj" + _WB, r"swin.encoder.\1.attention.output.dense.\2"),
    Rename(_BLOCK + r"attn\.(relative_position_bias_table)", r"swin.encoder.\1.attention.self.\2"),
    Rename(_BLOCK + "norm1" + _WB, r"swin.encoder.\1.layernorm_before.\2"),
    Rename(_BLOCK + "norm2" + _WB, r"swin.encoder.\1.layernorm_after.\2"),
    Rename(_BLOCK + r"mlp\.fc1" + _WB, r"swin.encoder.\1.intermediate.dense.\2"),
    Rename(_BLOCK + r"mlp\.fc2" + _WB, r"swin.encoder.\1.output.dense.\2"),
    *(Rename(rf"layers\.{stage + 1}\.{_MERGING}", rf"swin.encoder.layers.{stage}.downsample.\1") for stage in range(3)),
    Rename("norm" + _WB, r"swin.layernorm.\1"),
    Rename(r"head\.fc" + _WB, r"classifier.\1"),
)

# mmpretrain (and mmdetection, mmsegmentation): its merging unfolds, so the four neighbours of a channel stand together.
_MM_WHY = "the four neighbours of a merging: by channels in mmpretrain, by columns in Swin"
_MM = r"(?:backbone\.)?"
_MM_BLOCK = _MM + r"stages\.(\d\.blocks\.\d+)\."


def _from_unfold(values: Tensor) -> Tensor:
    """[..., C x (row, column)] of a merging that unfolds -> [..., (column, row) x C]."""
    return _merge_quarters(values.unflatten(-1, (-1, 4)).transpose(-1, -2).flatten(-2))


def _to_unfold(values: Tensor) -> Tensor:
    return _merge_quarters(values).unflatten(-1, (4, -1)).transpose(-1, -2).flatten(-2)


def _mm_indices(model: Any) -> dict[str, Tensor]:
    return {
        name.replace("layers.", "backbone.stages.", 1).replace("attn.", "attn.w_msa."): index
        for name, index in _swin_buffers("", masks=False)(model).items()
    }


_MM_SWIN: tuple[Rule, ...] = (
    Rename(_MM + r"patch_embed\.projection" + _WB, r"patch_embed.proj.\1"),
    Rename(_MM + r"patch_embed\.norm" + _WB, r"patch_embed.norm.\1"),
    Rename(_MM_BLOCK + r"attn\.w_msa\.(qkv|proj)" + _WB, r"layers.\1.attn.\2.\3"),
    Rename(_MM_BLOCK + r"attn\.w_msa\.(relative_position_bias_table)", r"layers.\1.attn.\2"),
    Rename(_MM_BLOCK + "(norm[12])" + _WB, r"layers.\1.\2.\3"),
    Rename(_MM_BLOCK + r"ffn\.layers\.0\.0" + _WB, r"layers.\1.mlp.fc1.\2"),
    Rename(_MM_BLOCK + r"ffn\.layers\.1" + _WB, r"layers.\1.mlp.fc2.\2"),
    *(
        Reshape(
            rf"{_MM}stages\.{stage}\.{_MERGING}",
            rf"layers.{stage + 1}.downsample.\1",
            _from_unfold,
            _MM_WHY,
        )
        for stage in range(3)
    ),
    Rename(_MM + "norm3?" + _WB, r"norm.\1"),
    Rename(r"head\.fc" + _WB, r"head.fc.\1"),
    Drop(_MM_BLOCK + r"attn\.(w_msa\.relative_position_index|attn_mask)", _INDEX),
    Drop(_MM + "norm[012]" + _WB, "norm of a level for detectors and segmenters; timm's Swin has one behind the last"),
    Drop(_MM + "mask_token", _SIMMIM_TOKEN),
    Drop(r"neck\.decoder\.0" + _WB, _SIMMIM_DECODER),
    Drop(r"(neck|\w+_heads?)\..+", HEADS_OF_TASKS),
)
_NUMBERED = r"layers\.(\d\.blocks\.\d+)\."
_MM_SWIN_BACK: tuple[Rule, ...] = (
    Rename(r"patch_embed\.proj" + _WB, r"backbone.patch_embed.projection.\1"),
    Rename(r"patch_embed\.norm" + _WB, r"backbone.patch_embed.norm.\1"),
    Rename(_NUMBERED + r"attn\.(qkv|proj)" + _WB, r"backbone.stages.\1.attn.w_msa.\2.\3"),
    Rename(_NUMBERED + r"attn\.(relative_position_bias_table)", r"backbone.stages.\1.attn.w_msa.\2"),
    Rename(_NUMBERED + "(norm[12])" + _WB, r"backbone.stages.\1.\2.\3"),
    Rename(_NUMBERED + r"mlp\.fc1" + _WB, r"backbone.stages.\1.ffn.layers.0.0.\2"),
    Rename(_NUMBERED + r"mlp\.fc2" + _WB, r"backbone.stages.\1.ffn.layers.1.\2"),
    *(
        Reshape(
            rf"layers\.{stage + 1}\.{_MERGING}",
            rf"backbone.stages.{stage}.downsample.\1",
            _to_unfold,
            _MM_WHY,
        )
        for stage in range(3)
    ),
    Rename("norm" + _WB, r"backbone.norm3.\1"),
    Copy(r"head\.fc" + _WB),
)

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


def _simmim_added(model: Any) -> dict[str, Tensor]:
    return {
        "encoder.mask_token": torch.zeros(1, 1, model.patch_embed.proj.out_channels),
        **_swin_buffers("encoder.")(model),
    }


_GREEN_2022 = (
    "taken for the code of May 2022, which joined the four neighbours of a merging in another order (likely, but "
    "unproven; --layout green_mim reads the file as later code writes it, convert --verify says which of the two "
    "reconstructs better)"
)

LAYOUTS = (
    Layout(
        "green_mim",
        "GreenMIM authors, masked pre-training of a Swin with decoder, code since January 2023",
        has=(r"encoder\.layers\.0\.downsample\.reduction\.weight", r"decoder_pred\.weight"),
        lacks=(r"encoder\.mask_token",),
        rules=_swin(r"encoder\."),
        decoder=MAE_DECODER,
        back=(*_swin_back("encoder."), *MAE_DECODER_BACK),
        added=_swin_buffers("encoder.", masks=False),
    ),
    Layout(
        "green_mim_2022",
        "GreenMIM authors, the published files: code of May 2022, the same names as green_mim",
        has=(r"encoder\.layers\.0\.downsample\.reduction\.weight", r"decoder_pred\.weight"),
        lacks=(r"encoder\.mask_token",),
        rules=_swin(r"encoder\.", swapped=True),
        decoder=MAE_DECODER,
        back=(*_swin_back("encoder.", swapped=True), *MAE_DECODER_BACK),
        added=_swin_buffers("encoder.", masks=False),
        warning=_GREEN_2022,
        by_name=True,
    ),
    Layout(
        "green_mim_twins",
        "GreenMIM authors, masked pre-training of a Twins with decoder (kernels as spconv stores them)",
        has=(r"encoder\.patch_embeds\.1\.proj\.weight", r"decoder_pred\.weight"),
        lacks=(),
        rules=(
            Reshape(r"encoder\." + _TWINS_SPARSE, r"\1", _from_spconv, _SPARSE_WHY),
            Reshape(r"encoder\." + _TWINS_TAPS, r"\1", _centre_tap(-1), _TAP_WHY),
            Rename(r"encoder\." + _TWINS_PLAIN, r"\1"),
        ),
        decoder=MAE_DECODER,
        back=(
            Reshape(_TWINS_SPARSE, r"encoder.\1", lambda kernel: kernel.permute(0, 2, 3, 1).contiguous(), _SPARSE_WHY),
            Reshape(_TWINS_TAPS, r"encoder.\1", _centre_tap(1), _TAP_WHY),
            Rename(_TWINS_PLAIN, r"encoder.\1"),
            *MAE_DECODER_BACK,
        ),
    ),
    Layout(
        "simmim_swin",
        "SimMIM authors, masked pre-training of a Swin on all tokens",
        has=(r"encoder\.layers\.0\.downsample\.reduction\.weight", r"encoder\.mask_token"),
        lacks=(),
        rules=(
            *_swin(r"encoder\."),
            Drop(r"encoder\.mask_token", _SIMMIM_TOKEN),
            Drop(r"decoder\.0" + _WB, _SIMMIM_DECODER),
        ),
        back=_swin_back("encoder."),
        added=_simmim_added,
        added_why="encoder.mask_token is zero: nothing here is trained to stand for hidden patches",
    ),
    Layout(
        "swin_microsoft",
        "Microsoft's Swin, with or without classifier",
        has=(r"patch_embed\.norm\.weight", r"layers\.0\.downsample\.reduction\.weight"),
        lacks=(),
        rules=(*_swin(""), Rename(r"head\.(weight|bias)", r"head.fc.\1")),
        back=(*_swin_back(""), Rename(r"head\.fc\.(weight|bias)", r"head.\1")),
        added=_swin_buffers(""),
    ),
    Layout(
        "swin_transformers",
        "transformers' Swin: classifier, bare encoder, or SimMIM's pre-training (microsoft/swin-*)",
        has=(
            _HF_SWIN + r"embeddings\.patch_embeddings\.projection\.weight",
            _HF_SWIN + r"encoder\.layers\.0\.blocks\.0\.layernorm_before\.weight",
        ),
        lacks=(),
        rules=_HF_SWIN_RULES,
        back=_HF_SWIN_BACK,
        top_key="",
    ),
    Layout(
        "swin_mmpretrain",
        "mmpretrain's Swin: classifier, bare encoder, or SimMIM's pre-training; backbones of mmdetection",
        has=(_MM + r"stages\.0\.blocks\.0\.attn\.w_msa\.qkv\.weight", _MM + r"patch_embed\.projection\.weight"),
        lacks=(),
        rules=_MM_SWIN,
        back=_MM_SWIN_BACK,
        added=_mm_indices,
        top_key="state_dict",
    ),
    Layout(
        "green_swin_timm",
        "this package's own files of a Swin, which have timm's names",
        own=True,
        has=(r"patch_embed\.norm\.weight", r"layers\.1\.downsample\.reduction\.weight"),
        lacks=(r"layers\.0\.downsample\..*",),
        rules=(Copy(_SWIN_PART), Copy(rf"layers\.[1-3]\.{_MERGING}"), Copy(r"head\.fc\.(weight|bias)"), _SWIN_BUFFERS),
    ),
    Layout(
        "green_twins_timm",
        "this package's own files of a Twins, which have timm's names",
        own=True,
        has=(r"patch_embeds\.1\.proj\.weight", r"pos_block\.0\.proj\.0\.weight"),
        lacks=(),
        rules=(Copy(_TWINS_PLAIN), Copy(_TWINS_SPARSE), Copy(_TWINS_TAPS), *HEAD),
    ),
)
