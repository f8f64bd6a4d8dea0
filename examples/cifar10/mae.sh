#!/usr/bin/env bash
# How the embedded weights hivit_atto.mae_cifar10 and hivit_atto.mae_cifar10_ft_cifar10 were made, and the table of MODEL_CARDS.md.
#
#     bash examples/cifar10/mae.sh DATA RUNS pretrain|scratch|finetune|ship|probes
#
# DATA holds train.tar and test.tar (SPLIT/CLASS/NNNN.jpg); RUNS gets a folder for each run. Steps marked (*) need those before.
set -euo pipefail
data=$1 runs=$2 step=$3
model=hivit_atto
seeds=${SEEDS:-0 1 2}
epochs=8
source "$(dirname "$0")/common.sh"
recipe+=(--batch-size 200)

evaluate() { python -m hiermim_zoo.evaluate "$data/test.tar" --train "$data/train.tar" "$@"; }

case $step in
pretrain) # labels are not used
  python -m hiermim_zoo.pretrain "$data/train.tar" --model $model -o "$runs/pretrain" --resume auto --license apache-2.0 \
    --epochs 30 --warmup 2 --batch-size 250 --opt nmuon --lr 2e-3 --decoder-depth 2 --decoder-dim 128 --decoder-heads 4 \
    --max-bad 0 --look-every 10 --log-steps 100 "${fast[@]}"
  ;;
scratch) # supervised only
  for seed in $seeds; do
    evaluate --model $model --no-pretrained --method finetune --epochs $epochs --layer-decay 1 --seed "$seed" \
      "${recipe[@]}" "${fast[@]}" --json "$runs/scratch-$seed.json" -o "$runs/scratch-$seed"
  done
  ;;
finetune) # (*)
  for seed in $seeds; do
    evaluate --model "local-dir:$runs/pretrain/encoder" --method finetune --epochs $epochs --layer-decay 0.85 --seed "$seed" \
      "${recipe[@]}" "${fast[@]}" --json "$runs/finetune-$seed.json" -o "$runs/finetune-$seed"
  done
  ;;
ship) # (*) the same with more epochs
  evaluate --model "local-dir:$runs/pretrain/encoder" --method finetune --epochs 20 --layer-decay 0.85 --seed 0 \
    "${recipe[@]}" "${fast[@]}" --json "$runs/ship.json" -o "$runs/ship"
  ;;
probes) # (*) features as they are; random weights with three seeds
  for method in knn linear; do
    probe=(--method $method --amp bf16 --batch-size 250 --workers 1)
    for seed in $seeds; do
      evaluate --model $model --no-pretrained --seed "$seed" "${probe[@]}" --json "$runs/random-$method-$seed.json"
    done
    for run in pretrain/encoder scratch-2 finetune-0 ship; do
      evaluate --model "local-dir:$runs/$run" "${probe[@]}" --json "$runs/${run%/*}-$method.json"
    done
  done
  ;;
*)
  echo "unknown step $step" >&2
  exit 2
  ;;
esac
