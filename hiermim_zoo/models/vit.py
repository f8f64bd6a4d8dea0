"""Plain vision transformers of timm as maskable encoders (MAE, arXiv 2111.06377, section 3); no new weights, no new
names.

Letters: B images, N patches, K of them visible, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.models import checkpoint_seq, is_model, model_entrypoint, vision_transformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..checkpoints.layouts import Native
from ..checkpoints.tables.vit import PLAIN, plain_rules
from ..masking import check_keep, gather_units
from ..protocol import MaskLayout, Stage, Visible
from .build import source_grid
from .family import Family, add_family
from .recipes import FineTuning, Pretraining, Recipe, Rows


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
        x = model.patch_embed(images)  # [B, N, D]
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


def fit(state: dict[str, Tensor], native: Native, model: VisionTransformer) -> dict[str, Tensor]:
    """Positions are resampled to the model's grid."""
    new, prefix = model.patch_embed.grid_size, model.num_prefix_tokens
    old = _grid(state, prefix, [model.patch_embed.img_size])
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], list(new), list(old), prefix)
    return state


def img_size(native: Native, sizes: Sequence[Any], model_args: Mapping[str, Any]) -> tuple[int, int]:
    height, width = _grid(native.state, 1, sizes)
    patch = native.state["patch_embed.proj.weight"].shape[-1]
    return height * patch, width * patch


def _grid(state: Mapping[str, Tensor], prefix: int, sizes: Sequence[Any]) -> tuple[int, int]:
    return source_grid(state["pos_embed"].shape[1] - prefix, state["patch_embed.proj.weight"].shape[-1], sizes)


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


FAMILY = add_family(
    Family(
        name="vision_transformer",
        own=False,
        variants={function.__name__: {} for function in _ENTRYPOINTS},
        construct=construct,
        layouts=PLAIN,
        img_size=img_size,
        fit=fit,
        more_rules=plain_rules,
        view=view,
        mae=Rows(Recipe(fusion="last", depth=8, xavier=True)),
        pretraining=Rows(Pretraining(blr=1.5e-4)),  # arXiv 2111.06377, table 8
        fine_tuning=Rows(  # table 9 there
            FineTuning(epochs=100, blr=5e-4, layer_decay=0.65, drop_path=0.1),
            {
                "vit_large_patch16_224": FineTuning(epochs=50, blr=1e-3, layer_decay=0.75, drop_path=0.2),
                "vit_huge_patch14_224": FineTuning(epochs=50, blr=1e-3, layer_decay=0.75, drop_path=0.3),
            },
        ),
        fine_tuning_args={"global_pool": "avg"},  # the class token is not used (arXiv 2111.06377, appendix A.1)
    )
)
for _function in _ENTRYPOINTS:
    FAMILY.adopt(_function)
