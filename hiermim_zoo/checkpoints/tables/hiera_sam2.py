"""Layouts of the image encoder of SAM 2 and 2.1 (https://github.com/facebookresearch/sam2, timm, transformers)."""

from __future__ import annotations

from ..layout import HEAD, Layout
from ..rules import Copy, Drop, Rename, Rule

_WINDOW = "pos_embed_window"  # no Hiera has it but that of SAM 2
_POSITIONS = Copy(f"pos_embed|{_WINDOW}")
_STEM = Copy(r"patch_embed\.proj\.(weight|bias)")
_BLOCK = r"blocks\.(\d+)\."
_KIND = r"\.(weight|bias)"
_TRUNK: tuple[Rule, ...] = (
    _POSITIONS,
    _STEM,
    Copy(r"blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2|proj)\.(weight|bias)"),
)
_SIGNATURE = ("pos_embed", _WINDOW, r"patch_embed\.proj\.weight")
_CLASSIFIER = Drop(r"(fc_norm|head)\.(weight|bias)", "of a classifier, for which SAM 2 has no place")
_NORM = r"fc_norm\.(weight|bias)"
_BESIDE = "of SAM 2, beside its image encoder's trunk: neck, memory, prompts, masks"

# ---- the authors

_SAM2 = "image_encoder.trunk."
_SAM2_BESIDE = (
    r"image_encoder\.neck\..+"
    r"|(memory_attention|memory_encoder|sam_prompt_encoder|sam_mask_decoder)\..+"
    r"|(obj_ptr_proj|obj_ptr_tpos_proj|mask_downsample)\..+"
    r"|maskmem_tpos_enc|no_mem_embed|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial"
)

# ---- transformers: Sam2Model and Sam2VideoModel, Sam2VisionModel, Sam2HieraDetModel

_HF = r"(?:vision_encoder\.)?(?:backbone\.)?"
_HF_BLOCK = _HF + _BLOCK
_HF_BESIDE = (
    r"(vision_encoder\.)?neck\..+"
    r"|(memory_attention|memory_encoder|prompt_encoder|mask_decoder|shared_image_embedding)\..+"
    r"|(object_pointer_proj|mask_downsample|temporal_positional_encoding_projection_layer)\..+"
    r"|no_memory_embedding|no_memory_positional_encoding|memory_temporal_positional_encoding|no_object_pointer"
    r"|occlusion_spatial_embedding_parameter"
)
_HF_BACK = "vision_encoder.backbone."
_HF_BLOCK_BACK = _HF_BACK + r"blocks.\1."

LAYOUTS = (
    Layout(
        "sam2",
        "SAM 2 and 2.1 of the authors (sam2_hiera_*.pt, sam2.1_hiera_*.pt), or the trunk of their image encoder",
        has=(*_SIGNATURE, r"blocks\.\d+\.mlp\.layers\.0\.weight"),
        lacks=(),
        rules=(
            _POSITIONS,
            _STEM,
            Copy(r"blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|proj)\.(weight|bias)"),
            Rename(_BLOCK + r"mlp\.layers\.0" + _KIND, r"blocks.\1.mlp.fc1.\2"),
            Rename(_BLOCK + r"mlp\.layers\.1" + _KIND, r"blocks.\1.mlp.fc2.\2"),
            Drop(_SAM2_BESIDE, _BESIDE),
        ),
        may_be_missing=(_NORM,),
        back=(
            _CLASSIFIER,
            Rename(_BLOCK + r"mlp\.fc1" + _KIND, rf"{_SAM2}blocks.\1.mlp.layers.0.\2"),
            Rename(_BLOCK + r"mlp\.fc2" + _KIND, rf"{_SAM2}blocks.\1.mlp.layers.1.\2"),
            Rename(r"((?:pos_embed|patch_embed|blocks).*)", rf"{_SAM2}\1"),
        ),
        prefix=_SAM2,
        exchanges=True,
    ),
    Layout(
        "sam2_timm",
        "timm's names of SAM 2's image encoder (sam2_hiera_*), with or without its norm and classifier",
        has=(*_SIGNATURE, r"blocks\.\d+\.mlp\.fc1\.weight"),
        lacks=(_NORM,),
        rules=(
            *_TRUNK,
            Rename(r"head\.norm\.(weight|bias)", r"fc_norm.\1"),
            Rename(r"head\.fc\.(weight|bias)", r"head.\1"),
        ),
        may_be_missing=(_NORM,),
        back=(Rename(r"fc_norm\.(weight|bias)", r"head.norm.\1"), Rename(r"head\.(weight|bias)", r"head.fc.\1")),
        top_key="",
        exchanges=True,
    ),
    Layout(
        "sam2_transformers",
        "transformers' SAM 2 (Sam2Model, Sam2VideoModel), or its Sam2VisionModel or Sam2HieraDetModel alone",
        has=(_HF + "pos_embed", _HF + _WINDOW, _HF + r"patch_embed\.projection\.weight"),
        lacks=(),
        rules=(
            Rename(_HF + f"(pos_embed|{_WINDOW})", r"\1"),
            Rename(_HF + r"patch_embed\.projection" + _KIND, r"patch_embed.proj.\1"),
            Rename(_HF_BLOCK + r"layer_norm([12])" + _KIND, r"blocks.\1.norm\2.\3"),
            Rename(_HF_BLOCK + r"(attn\.qkv|attn\.proj|proj)" + _KIND, r"blocks.\1.\2.\3"),
            Rename(_HF_BLOCK + r"mlp\.proj_in" + _KIND, r"blocks.\1.mlp.fc1.\2"),
            Rename(_HF_BLOCK + r"mlp\.proj_out" + _KIND, r"blocks.\1.mlp.fc2.\2"),
            Drop(_HF_BESIDE, _BESIDE),
        ),
        may_be_missing=(_NORM,),
        back=(
            _CLASSIFIER,
            Rename(f"(pos_embed|{_WINDOW})", rf"{_HF_BACK}\1"),
            Rename(r"patch_embed\.proj" + _KIND, rf"{_HF_BACK}patch_embed.projection.\1"),
            Rename(_BLOCK + r"norm([12])" + _KIND, rf"{_HF_BLOCK_BACK}layer_norm\2.\3"),
            Rename(_BLOCK + r"(attn\.qkv|attn\.proj|proj)" + _KIND, rf"{_HF_BLOCK_BACK}\2.\3"),
            Rename(_BLOCK + r"mlp\.fc1" + _KIND, rf"{_HF_BLOCK_BACK}mlp.proj_in.\2"),
            Rename(_BLOCK + r"mlp\.fc2" + _KIND, rf"{_HF_BLOCK_BACK}mlp.proj_out.\2"),
        ),
        top_key="",
        exchanges=True,
    ),
    Layout(
        "sam2_own",
        "this package's own files",
        own=True,
        has=(*_SIGNATURE, r"fc_norm\.weight"),
        lacks=("cls_token", "mask_token"),
        rules=(*_TRUNK, *HEAD),
    ),
)
