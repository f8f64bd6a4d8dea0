"""Top-1 accuracy of a model on a folder (or tar) of class folders, with timm's own reader and transforms.

python examples/cifar10/evaluate.py test.tar --model hivit_atto
"""

from __future__ import annotations

import argparse
import json

import timm
import torch
from timm.data import create_dataset, create_transform, resolve_model_data_config

import hiermim_zoo


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--model", default="hivit_atto", help="anything that timm.create_model takes")
    parser.add_argument("--batch-size", type=int, default=250)
    args = parser.parse_args()

    model = timm.create_model(args.model, pretrained=True).eval()
    dataset = create_dataset("", args.data, transform=create_transform(**resolve_model_data_config(model), is_training=False))
    loader = torch.utils.data.DataLoader(dataset, args.batch_size)
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loader)
    top1 = 100 * right / len(dataset)
    print(json.dumps({"model": args.model, "pictures": len(dataset), "top1": round(top1, 2), "version": hiermim_zoo.__version__}))


if __name__ == "__main__":
    main()
