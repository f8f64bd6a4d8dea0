#!/usr/bin/env bash
# GreenMIM on real images, with one mask a batch and one an image. How the embedded weights green_swin_atto.mae_cifar10 and
# green_swin_atto.mae_cifar10_ft_cifar10 and the table of MODEL_CARDS.md were made.
#
#     bash examples/cifar10/green.sh DATA RUNS pretrain|compare|long|ship|probes
#
# DATA holds train.tar and test.tar (SPLIT/CLASS/NNNN.jpg); RUNS gets a folder for each run. ship needs long, the other
# steps need pretrain. Comparisons fine-tune on a tenth of the labels, the first 500 images of each class, for 5 epochs.
set -euo pipefail
data=$1 runs=$2 step=$3
model=green_swin_atto
epochs=5
source "$(dirname "$0")/common.sh"

pretrain() { # NAME OPTIONS...: labels are not used
  python -m hiermim_zoo.pretrain "$data/train.tar" --model $model -o "$runs/$1" --resume auto --license apache-2.0 \
    --warmup 0.5 --batch-size 250 --opt nmuon --lr 2e-3 --crop-scale 0.4 1 --decoder-depth 1 --decoder-dim 128 --decoder-heads 4 \
    --max-bad 0 --look-every 10 --log-steps 100 "${fast[@]}" "${@:2}"
}

case $step in
pretrain) for masks in batch sample; do pretrain $masks --masks $masks --epochs 5; done ;;
long) pretrain long --masks batch --epochs 20 ;;
compare)
  for seed in ${SEEDS:-0 1 2}; do
    for masks in batch sample; do
      finetune $masks "$seed" --model "local-dir:$runs/$masks/encoder" --layer-decay 0.85
    done
    finetune scratch "$seed" --model $model --no-pretrained --layer-decay 1
  done
  ;;
ship) # on all labels
  python -m hiermim_zoo.evaluate "$data/test.tar" --train "$data/train.tar" --model "local-dir:$runs/long/encoder" \
    --method finetune --epochs 20 --batch-size 250 --layer-decay 0.85 "${recipe[@]}" --lr 3e-3 "${fast[@]}" --json "$runs/ship.json" -o "$runs/ship"
  ;;
probes) # features as they are
  for masks in batch sample long; do probe $masks --model "local-dir:$runs/$masks/encoder"; done
  probe random --model $model --no-pretrained
  ;;
*)
  echo "unknown step $step" >&2
  exit 2
  ;;
esac
