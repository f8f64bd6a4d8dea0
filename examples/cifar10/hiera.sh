#!/usr/bin/env bash
# Hiera on real images. How the embedded weights hiera_atto.mae_cifar10 and hiera_atto.mae_cifar10_ft_cifar10 and the tables of
# MODEL_CARDS.md were made.
#
#     bash examples/cifar10/hiera.sh DATA RUNS pretrain|compare|ship|sizes|probes
#
# DATA holds train.tar and test.tar (SPLIT/CLASS/NNNN.jpg); RUNS gets a folder for each run. Each step needs the first, sizes needs ship.
# The embedded weights were made on a GPU in six minutes (COMPILE=cudagraphs WORKERS=5).
# Comparisons fine-tune on a tenth of the labels, the first 500 images of each class, for 6 epochs.
set -euo pipefail
data=$1 runs=$2 step=$3
model=hiera_atto
epochs=6
source "$(dirname "$0")/common.sh"

case $step in
pretrain) # labels are not used
  python -m hiermim_zoo.pretrain "$data/train.tar" --model $model -o "$runs/pretrain" --resume auto --license apache-2.0 \
    --epochs 10 --warmup 1 --batch-size 500 --opt nmuon --lr 4e-3 --crop-scale 0.4 1 --drop-path 0 --decoder-depth 1 \
    --decoder-dim 96 --decoder-heads 4 --max-bad 0 --look-every 10 --log-steps 100 "${fast[@]}"
  ;;
compare)
  for seed in ${SEEDS:-0 1 2}; do
    finetune mae "$seed" --model "local-dir:$runs/pretrain/encoder" --layer-decay 0.85
    finetune scratch "$seed" --model $model --no-pretrained --layer-decay 1
  done
  ;;
ship) # on all labels
  python -m hiermim_zoo.evaluate "$data/test.tar" --train "$data/train.tar" --model "local-dir:$runs/pretrain/encoder" \
    --method finetune --epochs 19 --batch-size 250 --layer-decay 0.85 "${recipe[@]}" --lr 3e-3 "${fast[@]}" --json "$runs/ship.json" -o "$runs/ship"
  ;;
sizes) # positions learned at 96 x 96, resampled either way
  for size in 64 128 192; do
    for how in plain window; do
      python -m hiermim_zoo.evaluate "$data/test.tar" --method classify --model "local-dir:$runs/ship" --img-size $size \
        --model-kwargs pos_resize=$how --amp bf16 --batch-size 250 --workers 1 --json "$runs/$how-$size.json"
    done
  done
  ;;
probes) # features as they are
  probe mae --model "local-dir:$runs/pretrain/encoder"
  probe random --model $model --no-pretrained
  ;;
*)
  echo "unknown step $step" >&2
  exit 2
  ;;
esac
