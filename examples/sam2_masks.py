"""SAM 2 with an encoder that was pre-trained here (pip install "hiermim-zoo[sam]", which brings transformers).

    python examples/sam2_masks.py
    python examples/sam2_masks.py --data IMAGES --sam FOLDER --model hiera_sam2_tiny --steps 2000 -o adapted

Takes transformers' SAM 2 apart and puts it together again: its trunk becomes a folder of this package, is pre-trained
by masking on images without labels, and goes back into SAM 2's checkpoint, where every other tensor stays as it is. SAM
2 is asked for masks before and after. Without --sam it is a small one with random weights, so the masks mean nothing.
With --steps 0 the trunk goes back as it came, and the masks are the same to the last bit.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Sam2Config, Sam2Model

from hiermim_zoo import convert, pretrain
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.commands.options.values import whole

PICTURES = Path(__file__).parent / "pictures"
LAYOUT = "sam2_transformers"  # the authors' own files: --to sam2


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("adapted"), metavar="DIR", help="SAM 2, adapted")
    parser.add_argument("--data", default=str(PICTURES), metavar="IMAGES", help="a folder; default: 200 photographs")
    parser.add_argument("--sam", type=Path, metavar="DIR", help="of Sam2Model.save_pretrained; default: random weights")
    parser.add_argument("--model", default="hiera_sam2_atto", help="the shape of its trunk; default: hiera_sam2_atto")
    parser.add_argument("--steps", type=whole(0), default=2, help="of pre-training; 0: the trunk stays as it is")
    parser.add_argument("--batch-size", type=whole(1), default=8)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        sam = args.sam or small_sam(Path(scratch) / "sam")
        trunk = convert.run(source=str(sam), model=args.model, output=Path(scratch) / "trunk")
        if args.steps:
            trunk = pretrained(trunk, args, Path(scratch) / "run")
        put_back(trunk, args.model, sam, args.output)
        before, after = masks(sam), masks(args.output)
    same = "the same to the last bit" if torch.equal(before, after) else "others"
    print(f"masks before {list(before.shape)}, after {list(after.shape)}: {same}")


def small_sam(folder: Path) -> Path:
    """A random SAM 2 for 128 x 128 pixels whose trunk has the shape of hiera_sam2_atto."""
    trunk: dict[str, Any] = {
        "model_type": "sam2_hiera_det_model",
        "image_size": [128, 128],
        "hidden_size": 24,
        "blocks_per_stage": [1, 1, 3, 2],
        "embed_dim_per_stage": [24, 48, 96, 192],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [8, 4, 4, 2],
        "global_attention_blocks": [4],
        "window_positional_embedding_background_size": [4, 4],
    }
    vision = {
        "backbone_config": trunk,
        "backbone_channel_list": [192, 96, 48, 24],
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        "fpn_hidden_size": 32,
    }
    prompts = {"hidden_size": 32, "image_size": 128}
    decoder = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    torch.manual_seed(0)
    model = Sam2Model(config)
    with torch.no_grad():  # which start at zero
        for table in (model.vision_encoder.backbone.pos_embed, model.vision_encoder.backbone.pos_embed_window):
            table.normal_(std=0.02)
    model.save_pretrained(folder)
    return folder


def pretrained(trunk: Path, args: argparse.Namespace, output: Path) -> Path:
    """The folder of the encoder, after some steps."""
    return pretrain.run(
        data=args.data,
        model=args.model,
        checkpoint=str(trunk),
        decoder="fresh",
        steps=args.steps,
        batch_size=args.batch_size,
        output=output,
        workers=0,
        look_every=0,
    )


def put_back(trunk: Path, model: str, sam: Path, output: Path) -> None:
    """A folder of transformers: SAM 2 with another trunk."""
    output.mkdir(parents=True, exist_ok=True)
    file = "model.safetensors"
    convert.run(source=str(trunk), model=model, to=LAYOUT, into=sam / file, output=output / file, force=True)
    shutil.copy(sam / "config.json", output)


def masks(folder: Path) -> Tensor:
    """What SAM 2 finds at two points of an image of noise: [1, 2, 3, H / 4, W / 4]."""
    model = Sam2Model.from_pretrained(folder).eval()
    side = model.config.prompt_encoder_config.image_size
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    points = torch.tensor([[[[side / 4, side / 4]], [[side / 2, side / 2]]]])
    with torch.inference_mode():
        return model(pixel_values=image, input_points=points).pred_masks


if __name__ == "__main__":
    run_command(main)
