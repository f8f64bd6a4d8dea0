# What the other scripts share; each sets data, runs, model and epochs before it reads this.
# COMPILE=none and AMP=none: without a compiler, in float32, the faster one on CPUs that have no bfloat16 of their own.
fast=(--recipe paper --amp "${AMP:-bf16}" --workers "${WORKERS:-1}")
[ "${COMPILE:-default}" = none ] || fast+=(--compile "${COMPILE:-default}")
export TIMM_FUSED_ATTN="${TIMM_FUSED_ATTN:-0}" # 0 is faster on CPUs for so short sequences, and the same numbers but for rounding
recipe=(--opt nmuon --lr 2e-3 --min-lr 1e-5 --warmup 1 --auto-augment none --erase 0 --crop-scale 0.6 1 --mixup 0.2 --cutmix 1
  --mix-prob 0.3 --drop-path 0 --weight-decay 0.05)

tenth() { # of the labels: the first 500 images of each class
  [ -e "$runs/tenth/train" ] || { mkdir -p "$runs/tenth" && tar -xf "$data/train.tar" -C "$runs/tenth" --wildcards 'train/*/0[0-4][0-9][0-9].jpg'; }
}

finetune() { # NAME SEED OPTIONS...: on a tenth of the labels
  tenth
  [ -e "$runs/$1-$2.json" ] || python -m hiermim_zoo.evaluate "$data/test.tar" --train "$runs/tenth/train" --method finetune \
    --epochs "$epochs" --batch-size 100 --seed "$2" "${recipe[@]}" "${fast[@]}" --json "$runs/$1-$2.json" "${@:3}"
}

probe() { # NAME OPTIONS...: neighbours of features as they are, before any labels
  tenth
  python -m hiermim_zoo.evaluate "$data/test.tar" --train "$runs/tenth/train" --method knn --amp bf16 --batch-size 250 --workers 1 \
    --json "$runs/$1-knn.json" "${@:2}"
}
