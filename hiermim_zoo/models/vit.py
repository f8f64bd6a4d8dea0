"""Plain vision transformers of timm as maskable encoders (MAE, arXiv 2111.06377, section 3); no new weights, no new
names.

Letters: B images, N patches, K of them visible, D width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.models import checkpoint_seq, is_model, model_entrypoint, vision_transformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..checkpoints.layouts import Native
from ..checkpoints.rules import Copy, Drop, Rule
from ..checkpoints.tables.vit import PLAIN, one_frame
from ..layers.padding import check_images
from ..masking import check_keep, gather_units
from ..protocol import MaskLayout, Stage, Visible
from .family import Choice, Family, add_family
from .grids import Sizes, position_table, sizes_of, source_grid
from .recipes import FineTuning, Pretraining, Recipe, Rows
from .shapes import without_memory

POOLS = ("token", "avg")


@dataclass(frozen=True)
class MaskableViT:
    """A view of a timm ViT through the encoder protocol: a patch is a mask unit that holds one token.

    The view owns nothing: parameters and their names stay those of the model.

    Raises:
        ValueError: the model has parts whose meaning for hidden patches is not defined here.
    """

    model: VisionTransformer

    def __post_init__(self) -> None:
        if self.model.pos_embed is None or self.model.no_embed_class or self.model.num_reg_tokens:
            raise ValueError(
                "only a ViT with absolute positions, a class token that has one (or none), and no registers "
                "can be masked"
            )
        if self.model.cls_token is not None and not isinstance(self.model.fc_norm, nn.Identity):
            raise ValueError(
                "only a ViT with a norm over its tokens can be masked, this one has its norm behind mean pooling; "
                "global_pool='token' builds such a ViT, convert --global-pool token makes a folder for it"
            )

    @property
    def mask_layout(self) -> MaskLayout:
        embed: Any = self.model.patch_embed
        return MaskLayout(
            units=tuple(embed.grid_size),
            stages=(Stage((1, 1), self.model.embed_dim),),
            stride=tuple(embed.patch_size),
            prefix=self.model.num_prefix_tokens,
        )

    def forward_visible(self, images: Tensor, keep: Tensor) -> Visible:
        """[B, C, H, W], int64 [B, K] -> class token [B, prefix, D] and visible tokens [B, K, 1, 1, D], after the final
        norm.
        """
        model, prefix = self.model, self.model.num_prefix_tokens
        check_images(images, model.in_chans)
        x = model.patch_embed(images).flatten(1, -2)  # [B, N, D]; with dynamic_img_size a grid until here
        check_keep(keep, x.shape[0], x.shape[1])
        positions: Any = model.pos_embed  # [1, prefix + N, D]
        x = gather_units(x + positions[:, prefix:], keep)  # [B, K, D]
        if model.cls_token is not None:
            token = (model.cls_token + positions[:, :prefix]).expand(x.shape[0], -1, -1)
            x = torch.cat([token, x], dim=1)
        x = model.norm_pre(x)
        x = model.norm(checkpoint_seq(model.blocks, x) if model.grad_checkpointing else model.blocks(x))
        return Visible(prefix=x[:, :prefix] if prefix else None, stages=(x[:, prefix:, None, None],))


def view(encoder: Any) -> MaskableViT | None:
    return MaskableViT(encoder) if isinstance(encoder, VisionTransformer) else None


# ---- checkpoints


def pool_of(state: Mapping[str, Tensor]) -> str:
    """What the final norm of a plain ViT, and its classifier, read."""
    return "avg" if "fc_norm.weight" in state else "token"


def more_rules(state: Mapping[str, Tensor], args: Mapping[str, Any]) -> Sequence[Rule]:
    """What a model keeps of a file: one norm, and the classifier only behind the norm that it was trained with.

    Raises:
        ValueError: another pooling is asked for.
    """
    found = pool_of(state)
    pool = args.get("global_pool", found)
    if pool not in POOLS:
        raise ValueError(f"--global-pool {pool} is unknown, use {' or '.join(POOLS)}")
    if pool == "avg":
        rules = [Drop(r"norm\.(weight|bias)", "norm over the tokens; fc_norm stands behind mean pooling instead")]
    else:
        rules = [Drop(r"fc_norm\.(weight|bias)", "norm behind mean pooling; norm over the tokens stands in its place")]
    if pool != found:
        reads = "the class token" if found == "token" else "mean pooling"
        rules.append(Drop(r"head\.(weight|bias)", f"classifier of {reads}, which is not what --global-pool asks for"))
    return (*one_frame(state), *rules, Copy(".*"))


def checkpoint_args(native: Native, arch: str) -> dict[str, Any]:
    """What norm and classifier read, and the patch, where they are not the architecture's.

    Raises:
        ValueError: timm has such patches under another name.
    """
    pool = pool_of(native.state)
    with without_memory():
        model: Any = construct(arch, num_classes=0)
    args: dict[str, Any] = {} if pool == model.global_pool else {"global_pool": pool}
    own, patch = _patch(arch), _patch_of(native.state)
    if own in (None, patch):
        return args
    if others := _with_patch(native, arch, patch):
        raise ValueError(
            f"tensor 'patch_embed.proj.weight' has patches of {patch} x {patch} pixels, {arch} has {own} x {own}: "
            f"use --model {' or '.join(others)}"
        )
    return {**args, "patch_size": patch}


def notes(native: Native, config: Mapping[str, Any], model: Any) -> dict[str, str]:
    """What report, card and configuration say of patches that the name of the architecture does not."""
    own, patch = _patch(model.pretrained_cfg["architecture"]), model.patch_embed.patch_size[0]
    return {} if own in (None, patch) else {"patches": f"{patch} x {patch} pixels; timm has no name for this ViT"}


def loading_args(model: VisionTransformer) -> dict[str, Any]:
    return {"global_pool": "token" if isinstance(model.fc_norm, nn.Identity) else "avg"}


def fit(state: dict[str, Tensor], native: Native, model: VisionTransformer) -> dict[str, Tensor]:
    """Positions are resampled to the model's grid."""
    if model.pos_embed is None or model.cls_token is None or model.no_embed_class:
        return state  # what has no place is named by check_fits
    new, old = model.patch_embed.grid_size, _grid(state, sizes_of(native, model))
    if 0 in new:
        size, patch = (" x ".join(map(str, x)) for x in (model.patch_embed.img_size, model.patch_embed.patch_size))
        raise ValueError(f"images of {size} pixels have no patch of {patch}")
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], list(new), list(old), num_prefix_tokens=1)
    return state


def img_size(native: Native, sizes: Sizes, model_args: Mapping[str, Any]) -> tuple[int, int]:
    height, width = _grid(native.state, sizes, 0 if model_args.get("no_embed_class") else 1)
    patch = _patch_of(native.state)
    return height * patch, width * patch


def _grid(state: Mapping[str, Tensor], sizes: Sizes, prefix: int = 1) -> tuple[int, int]:
    """Patches along both sides, whole ones alone, as timm has them.

    Args:
        prefix: rows of the class token before theirs.
    """
    rows, patch = position_table(state, "pos_embed").shape[1], _patch_of(state)
    return source_grid(rows - prefix, patch, sizes.whole(patch), prefix=prefix)


def _patch_of(state: Mapping[str, Tensor]) -> int:
    """Pixels along a side of a patch, as the stem of a checkpoint says.

    Raises:
        ValueError: it has none.
    """
    stem = state.get("patch_embed.proj.weight")
    if stem is None or stem.ndim != 4:
        found = "missing" if stem is None else list(stem.shape)
        raise ValueError(f"tensor 'patch_embed.proj.weight' [width, channels, p, p] is needed, it is {found}")
    return stem.shape[-1]


def _patch(arch: str) -> int | None:
    """Pixels along a side of a patch, as the name of an architecture says."""
    found = re.search(r"_patch(\d+)_", arch)
    return int(found[1]) if found else None


def _with_patch(native: Native, arch: str, patch: int) -> list[str]:
    """The architectures of an architecture's size that have such patches, and the tensors of a checkpoint."""
    fitting = []
    size = arch.partition("_patch")[0]
    for name in (name for name in FAMILY.variants if name.startswith(f"{size}_patch{patch}_")):
        with without_memory():
            own = construct(name, num_classes=0, global_pool=pool_of(native.state)).state_dict()
        shapes = {key: tensor.shape for key, tensor in own.items() if key != "pos_embed"}
        theirs = {
            key: tensor.shape for key, tensor in native.state.items() if not key.startswith(("pos_embed", "head."))
        }
        if shapes == theirs:
            fitting.append(name)
    return fitting


# ---- the family

# timm's own entry points: not its deprecated names, nor what somebody else has registered in the place of one.
_ENTRYPOINTS = [
    function
    for name, function in vars(vision_transformer).items()
    if is_model(name) and model_entrypoint(name) is function and function.__name__ == name
]


def construct(variant: str, **kwargs: Any) -> nn.Module:
    model: nn.Module = model_entrypoint(variant)(**kwargs)
    return model


_TUNE = FineTuning(
    epochs=100,
    blr=5e-4,
    layer_decay=0.65,
    drop_path=0.1,
    source="arXiv 2111.06377, table 9; MAE FINETUNE.md, main_finetune.py",
)

FAMILY = add_family(
    Family(
        name="vision_transformer",
        own=False,
        variants={function.__name__: {} for function in _ENTRYPOINTS},
        construct=construct,
        layouts=PLAIN,
        img_size=img_size,
        fit=fit,
        checkpoint_args=checkpoint_args,
        loading_args=loading_args,
        more_rules=more_rules,
        notes=notes,
        choices=(Choice("global_pool", "what norm and classifier read: the class token, or the mean", among=POOLS),),
        view=view,
        mae=Rows(
            Recipe(
                fusion="last",
                depth=8,
                xavier=True,
                fixed_positions=True,
                imagenet=True,
                source="MAE models_mae.py, util/pos_embed.py",
            )
        ),
        pretraining=Rows(Pretraining(blr=1.5e-4, source="arXiv 2111.06377, table 8; MAE main_pretrain.py")),
        fine_tuning=Rows(
            _TUNE,
            {
                "vit_large_patch16_224": replace(_TUNE, epochs=50, blr=1e-3, layer_decay=0.75, drop_path=0.2),
                "vit_huge_patch14_224": replace(_TUNE, epochs=50, blr=1e-3, layer_decay=0.75, drop_path=0.3),
            },
        ),
        fine_tuning_args={"global_pool": "avg"},  # the class token is not used (arXiv 2111.06377, appendix A.1)
    )
)
for _function in _ENTRYPOINTS:
    FAMILY.adopt(_function)
