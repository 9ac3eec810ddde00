# Read by the recipes that compare arms with several seeds, after they set `here`, their folder; $1 is DATA.
# Stopped at any point they go on when started again. JOBS=2 trains two arms at a time, each on half of the cores.
# shellcheck shell=sh disable=SC2034,SC2154  # the recipes set and use these
export DEIT_TRAIN_DATA="$1" DEIT_TRAIN_WORKERS="${DEIT_TRAIN_WORKERS:-1}"
runs=${DEIT_TRAIN_RUNS:-runs}
jobs=${JOBS:-1}
seeds=${SEEDS:-0 1 2}
# one thread count for all arms, because another number sums in another order
threads=${OMP_NUM_THREADS:-$(($(nproc) / jobs))}

# The convnet that teaches, on images enlarged to 64 px, because timm's stem divides the resolution by four.
train_convnet() {
    "$here/run.sh" miniature-teacher --seed 0 \
        --model resnet18 --model-arg 'channels=[32,64,128,256]' --model-arg 'layers=[1,1,1,1]' \
        --image-size 64 --crop-pct 1.0 --drop-path 0 --pixel-bank --evaluate-every 5 \
        --epochs 10 --warmup-epochs 1 --batch-size 128 --learning-rate 2e-3 --weight-decay 0.05 \
        --min-crop-area 0.4 --random-erasing 0 --mixing-probability 0 --label-smoothing 0.1
}

# NAME OPTION...: a transformer that teaches, twice as wide, and on all images: it has seen three times what its students see.
train_wide() {
    "$here/run.sh" "$@" --seed 0 --preset miniature --train-images 50000 --epochs 12 --warmup-epochs 2 --evaluate-every 6 \
        --model-arg patch_size=8 --model-arg embed_dim=192 --model-arg num_heads=3 --model-arg depth=6
}

# The arms on standard input, a line NAME OPTION... each.
train_arms() {
    OMP_NUM_THREADS=$threads xargs -P "$jobs" -L 1 "$here/run.sh"
}

# NAME: the comparison that NAME.toml describes, as Markdown.
compare() {
    OMP_NUM_THREADS=$threads "$(dirname "$(command -v deit)")/python" -m studies.compare "$here/$1.toml" \
        --data "$DEIT_TRAIN_DATA" --runs "$runs" --output "$runs/$1.md"
}
