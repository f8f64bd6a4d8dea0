"""All that a model finds in a few images: pooled features, tokens and feature maps.

    python examples/extract_features.py examples/pictures/*/0000.jpg
    python examples/extract_features.py IMAGES... --model MODEL -o features.safetensors

The pooled features are written, one row for each image. All images are fed at once: for thousands of them, or to write
tokens and maps too, there is ``python -m hiermim_zoo.extract``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config

import hiermim_zoo  # noqa: F401  (registers the models with timm)
from hiermim_zoo.commands.options import run_command
from hiermim_zoo.models.build import make_model


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--model", default="hivit_atto", help="default: hivit_atto")
    parser.add_argument(
        "-o", "--output", default="features.safetensors", metavar="FILE", help="default: features.safetensors"
    )
    args = parser.parse_args(argv)

    model: Any = make_model(args.model, pretrained=True, num_classes=0).eval()
    transform = create_transform(**resolve_model_data_config(model))
    images = torch.stack([transform(Image.open(name).convert("RGB")) for name in args.images])  # [B, 3, H, W]

    with torch.inference_mode():
        tokens, maps = model.forward_intermediates(images)  # [B, N, C] and, fine to coarse, [B, c, h, w]
        pooled = model.forward_head(tokens, pre_logits=True)  # [B, C]

    for name, x in {"pooled": pooled, "tokens": tokens, **{f"map {level}": x for level, x in enumerate(maps)}}.items():
        print(f"{name}: {list(x.shape)}")
    save_file({"pooled": pooled}, args.output, metadata={"model": args.model, "files": json.dumps(args.images)})
    print(f"wrote {args.output}")


if __name__ == "__main__":
    run_command(main)
