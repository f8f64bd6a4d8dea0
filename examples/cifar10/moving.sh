#!/usr/bin/env bash
# Hiera on clips: images that move over a canvas, and the task to say what moves which way. How the embedded weights
# hiera_atto_video.mae_moving and hiera_atto_video.mae_moving_ft_moving (fine-tuned with seed 0) and the table of MODEL_CARDS.md were made.
#
#     bash examples/cifar10/moving.sh DATA RUNS pretrain|inflate IMAGES|compare
#
# DATA holds train.tar and test.tar (SPLIT/CLASS/NNNN.jpg); RUNS gets a folder for each run, IMAGES is the RUNS of hiera.sh.
# Comparisons fine-tune on a fiftieth of the images, the first 100 of each class, each moving four ways: 4,000 clips of 40 classes.
# All are measured on the first 100 test images of each class, 4,000 clips too.
set -euo pipefail
data=$1 runs=$2 step=$3
model=hiera_atto_video
epochs=5
source "$(dirname "$0")/common.sh"
recipe+=(--mixup 0 --cutmix 0 --hflip 0 --repeat 1 --dropout 0 --clip 0) # mirrored, what moves left would move right

extract() { # FOLDER SPLIT PATTERN
  [ -e "$runs/$1" ] || { mkdir -p "$runs/$1" && tar -xf "$data/$2.tar" -C "$runs/$1" --strip-components 1 --wildcards "$2/*/$3.jpg"; }
}

few() { # NAME SEED OPTIONS...: on few images
  [ -e "$runs/$1-$2.json" ] || python -m hiermim_zoo.evaluate "moving:$runs/measure" --train "moving:$runs/few" --method finetune \
    --epochs $epochs --batch-size 50 --seed "$2" "${recipe[@]}" "${fast[@]}" --json "$runs/$1-$2.json" -o "$runs/$1-$2" "${@:3}"
}

extract few train '00[0-9][0-9]'
extract measure test '00[0-9][0-9]'
case $step in
pretrain) # labels are not used
  python -m hiermim_zoo.pretrain "moving:$data/train.tar" --model $model -o "$runs/pretrain" --resume auto --license apache-2.0 \
    --epochs 0.4 --warmup 0.04 --repeat 1 --batch-size 100 --opt nmuon --lr 2e-3 --mask-ratio 0.75 --drop-path 0 --decoder-depth 1 \
    --decoder-dim 64 --decoder-heads 4 --max-bad 0 --look-every 0 --log-steps 100 --save-steps 300 "${fast[@]}"
  ;;
inflate) # the encoder of images
  [ -e "$runs/inflated" ] || python -m hiermim_zoo.convert "$4/pretrain/encoder" --model $model --inflate center -o "$runs/inflated"
  ;;
compare)
  for seed in ${SEEDS:-0 1}; do
    few mae "$seed" --model "local-dir:$runs/pretrain/encoder" --layer-decay 0.85
    few scratch "$seed" --model $model --no-pretrained --layer-decay 1
    few inflated "$seed" --model "local-dir:$runs/inflated" --layer-decay 0.85
  done
  ;;
*)
  echo "unknown step $step" >&2
  exit 2
  ;;
esac
