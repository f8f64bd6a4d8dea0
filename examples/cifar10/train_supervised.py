"""Train hivit_atto on CIFAR-10 with labels: the recipe behind the embedded weights hivit_atto.sup_cifar10.

    python examples/cifar10/train_supervised.py train.tar test.tar -o runs/hivit_atto

train.tar and test.tar hold SPLIT/CLASS/NNNN.jpg (a folder of class folders does as well). The pictures are read once and kept in
memory; cropping and flipping happen on whole batches, in the 32 x 32 pixels of the data; the model sees them enlarged to 64 x 64.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from timm.data import Mixup, create_dataset
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.nn import functional as F

import hiermim_zoo  # noqa: F401  (registers the models)

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def load(root: str) -> tuple[Tensor, Tensor]:
    """All pictures uint8 [N, 3, 32, 32] and labels int64 [N]; classes in alphabetical order."""
    dataset = create_dataset("", root)
    pairs = [(np.asarray(image), label) for image, label in dataset]
    images = torch.from_numpy(np.stack([image for image, _ in pairs])).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor([label for _, label in pairs])


def normalise(images: Tensor, size: int) -> Tensor:
    """uint8 [B, 3, h, w] -> normalised float [B, 3, size, size], bicubic."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    x = F.interpolate(images.float() / 255, size=(size, size), mode="bicubic", antialias=True)
    return (x.clamp(0, 1) - mean) / std


def augment(images: Tensor, pad: int = 4) -> Tensor:
    """Shift each picture by up to ``pad`` pixels (reflecting at the border) and mirror every other one."""
    b, _, h, w = images.shape
    x = F.pad(images.float(), (pad,) * 4, mode="reflect")
    dy, dx = torch.randint(0, 2 * pad + 1, (2, b, 1))
    rows = (dy + torch.arange(h))[:, None, :, None]
    cols = dx + torch.arange(w)
    cols = torch.where(torch.rand(b, 1) < 0.5, cols, cols.flip(1))[:, None, None, :]
    return x[torch.arange(b)[:, None, None, None], torch.arange(3)[None, :, None, None], rows, cols]


@torch.inference_mode()
def accuracy(model: torch.nn.Module, images: Tensor, labels: Tensor, size: int) -> float:
    model.eval()
    batches = zip(images.split(500), labels.split(500), strict=True)
    right = sum(int((model(normalise(x, size)).argmax(1) == y).sum()) for x, y in batches)
    return 100 * right / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="hivit_atto")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--optimizer", default="nmuon", help="any of timm's; Muon falls back to AdamW for 1-D tensors")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--warmup", type=int, default=5, help="epochs")
    parser.add_argument("--mix", type=float, default=0.3, help="share of batches with mixup or cutmix")
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--drop-path", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    np.random.seed(args.seed)  # timm's Mixup draws from numpy
    args.output.mkdir(parents=True, exist_ok=True)
    model = timm.create_model(args.model, num_classes=10, drop_path_rate=args.drop_path)
    size = model.patch_embed.img_size[0]
    images, labels = load(args.train)
    test = load(args.test)
    steps = len(images) // args.batch
    optimizer = create_optimizer_v2(model, args.optimizer, lr=args.lr, weight_decay=args.weight_decay)
    schedule = CosineLRScheduler(
        optimizer, args.epochs * steps, warmup_t=args.warmup * steps, warmup_lr_init=1e-6, t_in_epochs=False
    )
    ema = ModelEmaV3(model, decay=0.999, use_warmup=True)
    mix = Mixup(0.2, 1.0, prob=args.mix, label_smoothing=args.smoothing, num_classes=10)
    loss_fn = SoftTargetCrossEntropy()
    run = torch.compile(model) if args.compile else model

    for epoch in range(args.epochs):
        start, total = time.perf_counter(), 0.0
        model.train()
        for i, chosen in enumerate(torch.randperm(len(images))[: steps * args.batch].split(args.batch)):
            schedule.step_update(epoch * steps + i)
            x, target = mix(normalise(augment(images[chosen]), size), labels[chosen])
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                loss = loss_fn(run(x).float(), target)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            ema.update(model)
            total += loss.item()
        line = {"epoch": epoch, "loss": total / steps, "seconds": time.perf_counter() - start}
        if epoch % 5 == 4 or epoch == args.epochs - 1:
            line["test"] = accuracy(ema.module, *test, size)
            save_file(ema.module.state_dict(), args.output / "model.safetensors")
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
