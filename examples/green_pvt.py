"""Make your backbone green: timm's PVTv2, a pyramid with overlapping convolutions, sees visible patches alone.

    python examples/green_pvt.py

docs/green.md goes through the steps. Letters: B images; K visible units; t tokens along a side of one; N = K t t
visible tokens; C channels of a stage.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import Tensor
from torch.nn import functional as F

from hiermim_zoo.layers.sparse import halo_conv, make_halo, patch_conv, unit_grid, visible_pixels
from hiermim_zoo.mae import MaskedAutoencoder, Recipe
from hiermim_zoo.masking import check_keep
from hiermim_zoo.protocol import MaskLayout, Stage, Visible

UNIT = 32  # pixels: one token of the last stage, so that a unit is hidden as a whole at every stage


class GreenPVT(PyramidVisionTransformerV2):
    """timm's model with the encoder protocol added; its parameters and their names are timm's."""

    patch_embed: Any
    stages: Any

    def __init__(self, img_size: tuple[int, int] = (224, 224), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.img_size = img_size

    @property
    def mask_layout(self) -> MaskLayout:
        units = self.img_size[0] // UNIT, self.img_size[1] // UNIT
        return MaskLayout(units, (Stage((1, 1), self.num_features),), (UNIT, UNIT))

    def forward_visible(self, images: Tensor, keep: Tensor) -> Visible:
        units = unit_grid(images, UNIT)
        check_keep(keep, images.shape[0], units[0] * units[1])
        x = visible_pixels(images, keep, UNIT).flatten(
            1, 3
        )  # [B, N, 3]: to a convolution pixels are tokens like any other
        tokens, embed = UNIT, self.patch_embed
        for stage in self.stages:
            embed = stage.downsample or embed
            halo = make_halo(keep, units, tokens, embed.proj.kernel_size[0] // 2)
            x = embed.norm(halo_conv(x, embed.proj, halo))
            tokens //= embed.proj.stride[0]
            halo = make_halo(keep, units, tokens)
            for block in stage.blocks:
                x = x + block.drop_path1(attention(block.attn, block.norm1(x), keep.shape[1], tokens))
                mlp = block.mlp
                hidden = mlp.drop(mlp.act(halo_conv(mlp.relu(mlp.fc1(block.norm2(x))), mlp.dwconv, halo)))
                x = x + block.drop_path2(mlp.drop(mlp.fc2(hidden)))
            x = stage.norm(x)
        return Visible(None, (x[:, :, None, None],))


def attention(attn: Any, x: Tensor, kept: int, tokens: int) -> Tensor:
    """Visible tokens [B, N, C] look at a summary of each visible unit: a convolution of whole patches."""
    q = attn.q(x).unflatten(2, (attn.num_heads, -1)).transpose(1, 2)
    if attn.sr is not None:
        x = attn.norm(patch_conv(x.unflatten(1, (kept, tokens, tokens)), attn.sr)).flatten(1, 3)
    k, v = attn.kv(x).unflatten(2, (2, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=attn.attn_drop.p if attn.training else 0.0)
    return attn.proj_drop(attn.proj(out.transpose(1, 2).flatten(2)))


def main() -> None:
    torch.manual_seed(0)
    encoder = GreenPVT((128, 128), num_classes=0, depths=(1, 1, 1, 1), embed_dims=(16, 32, 64, 128))
    mae = MaskedAutoencoder(encoder, Recipe(fusion="last", depth=1, masks="batch"))
    optimizer = torch.optim.AdamW(mae.parameters(), lr=1e-3)
    coarse = torch.rand(4, 3, 8, 8)
    images = F.interpolate(coarse, size=(128, 128), mode="bilinear")  # something to predict
    for step in range(30):
        loss = mae(images).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
