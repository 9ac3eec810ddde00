#!/bin/sh
# DeiT's strategies in miniature on CIFAR-10: no distillation, hard distillation through the class token, and through the
# distillation token, three seeds each; then the comparison as Markdown.
#
#     training/recipes/miniature.sh DATA [TEACHER]      TEACHER: a checkpoint folder; a small convnet is trained otherwise
#
# Stopped at any point it goes on when started again. JOBS=2 trains two arms at a time, each on half of the cores.
set -eu
here=$(dirname "$0")
export DEIT_TRAIN_DATA="$1" DEIT_TRAIN_WORKERS="${DEIT_TRAIN_WORKERS:-1}"
runs=${DEIT_TRAIN_RUNS:-runs}
jobs=${JOBS:-1}
seeds=${SEEDS:-0 1 2}

if [ -n "${2:-}" ]; then
    teacher=$2
else
    # On images enlarged to 64 px, because timm's stem divides the resolution by four.
    "$here/run.sh" miniature-teacher --seed 0 \
        --model resnet18 --model-arg 'channels=[32,64,128,256]' --model-arg 'layers=[1,1,1,1]' \
        --image-size 64 --crop-pct 1.0 --drop-path 0 \
        --epochs 10 --warmup-epochs 1 --batch-size 128 --learning-rate 2e-3 --weight-decay 0.05 \
        --min-crop-area 0.4 --random-erasing 0 --mixing-probability 0 --label-smoothing 0.1
    teacher=$runs/miniature-teacher/checkpoint
fi

# one thread count for all arms, because another number sums in another order
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(($(nproc) / jobs))}"
for seed in $seeds; do
    echo "miniature-none-s$seed --preset miniature --seed $seed"
    echo "miniature-hard-class-s$seed --preset miniature --seed $seed" \
        "--distillation hard --token class --teacher $teacher"
    echo "miniature-hard-token-s$seed --preset miniature --seed $seed" \
        "--distillation hard --model deit_tiny_distilled_patch16_224 --teacher $teacher"
done | xargs -P "$jobs" -L 1 "$here/run.sh"

"$(dirname "$(command -v deit)")/python" -m studies.compare "$here/miniature.toml" --data "$1" --runs "$runs" --output "$runs/miniature.md"
