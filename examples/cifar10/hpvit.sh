#!/usr/bin/env bash
# HPViT's whole path on real images: pre-train a plain ViT, convert it, fine-tune. How the embedded weights hpvit_atto.mae_cifar10 and
# hpvit_atto.mae_cifar10_ft_cifar10 and the table of MODEL_CARDS.md were made.
#
#     bash examples/cifar10/hpvit.sh DATA RUNS pretrain|convert|compare|ablate|ship|probes
#
# DATA holds train.tar and test.tar (SPLIT/CLASS/NNNN.jpg); RUNS gets a folder for each run. Each step needs those before it;
# the embedded weights were made on a GPU (COMPILE=cudagraphs WORKERS=4 TIMM_FUSED_ATTN=1).
# Comparisons fine-tune on a tenth of the labels, the first 500 images of each class, for 12 epochs.
set -euo pipefail
data=$1 runs=$2 step=$3
model=hpvit_atto
plain=(--model vit_tiny_patch16_224 --model-kwargs embed_dim=96 depth=6 num_heads=3 --img-size 64)
epochs=12
source "$(dirname "$0")/common.sh"

pretrain() { # NAME OPTIONS...: labels are not used
  python -m hiermim_zoo.pretrain "$data/train.tar" "${plain[@]}" -o "$runs/$1" --resume auto --license apache-2.0 \
    --opt nmuon --crop-scale 0.4 1 --decoder-depth 2 --decoder-dim 128 --decoder-heads 4 --max-bad 0 --look-every 10 \
    --log-steps 100 "${fast[@]}" "${@:2}"
}

from() { finetune "$1" "$2" --model "local-dir:$runs/$1" --layer-decay 0.85; } # NAME SEED: of a converted folder

convert() { # NAME OPTIONS...
  [ -e "$runs/$1" ] || python -m hiermim_zoo.convert "$runs/pretrain/encoder" --model $model -o "$runs/$1" --verify "${@:2}"
}

case $step in
pretrain) pretrain pretrain --epochs 40 --warmup 2 --batch-size 500 --lr 3e-3 ;;
convert)
  convert avg
  convert conv --pool conv
  convert token --class-token
  convert window4 --window-size 4
  convert global --window-size 0
  convert depths1221 --depths 1 2 2 1
  convert depths2121 --depths 2 1 2 1
  convert depths1122 --depths 1 1 2 2
  ;;
compare)
  for seed in ${SEEDS:-0 1 2}; do
    finetune plain "$seed" --model "local-dir:$runs/pretrain/encoder" --layer-decay 0.85
    from avg "$seed"
    from conv "$seed"
    finetune scratch "$seed" --model $model --no-pretrained --layer-decay 1
  done
  ;;
ablate)
  for name in token window4 depths1221 global depths1122 depths2121; do from $name 0; done
  ;;
ship) # on all labels
  python -m hiermim_zoo.evaluate "$data/test.tar" --train "$data/train.tar" --model "local-dir:$runs/avg" --method finetune --epochs 18 \
    --batch-size 250 --layer-decay 0.85 "${recipe[@]}" --lr 3e-3 "${fast[@]}" --json "$runs/ship.json" -o "$runs/ship"
  ;;
probes) # features as they are, before any labels; with convolutional pooling they are those of avg
  for name in pretrain/encoder avg token window4 global depths1221 depths2121 depths1122; do
    probe "${name%/*}" --model "local-dir:$runs/$name"
  done
  ;;
*)
  echo "unknown step $step" >&2
  exit 2
  ;;
esac
