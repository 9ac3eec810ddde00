#!/bin/sh
# ViTKD and NKD in miniature on CIFAR-10: a wider DeiT teaches a narrow one; no teacher, NKD, ViTKD and both, three seeds
# each; then the comparison as Markdown.
#
#     training/recipes/vitkd-miniature.sh DATA [TEACHER]      TEACHER: a checkpoint folder of a transformer of 4 x 4
#                                                             patches; one of width 192 is trained otherwise
#
# Stopped at any point it goes on when started again. JOBS=2 trains two arms at a time, each on half of the cores. The arm
# without a teacher is that of miniature.sh and is trained once.
set -eu
here=$(dirname "$0")
export DEIT_TRAIN_DATA="$1" DEIT_TRAIN_WORKERS="${DEIT_TRAIN_WORKERS:-1}"
runs=${DEIT_TRAIN_RUNS:-runs}
jobs=${JOBS:-1}
seeds=${SEEDS:-0 1 2}

if [ -n "${2:-}" ]; then
    teacher=$2
else
    # Twice as wide, and on all images: it has seen three times what its students see.
    "$here/run.sh" vitkd-miniature-teacher --seed 0 --preset miniature --train-images 50000 --epochs 12 \
        --warmup-epochs 2 --model-arg patch_size=8 --model-arg embed_dim=192 --model-arg num_heads=3 --model-arg depth=6
    teacher=$runs/vitkd-miniature-teacher/checkpoint
fi

# one thread count for all arms, because another number sums in another order
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(($(nproc) / jobs))}"
for seed in $seeds; do
    echo "miniature-none-s$seed --preset miniature --seed $seed"
    echo "miniature-nkd-s$seed --preset vitkd-miniature --seed $seed --teacher $teacher --features none"
    echo "miniature-vitkd-s$seed --preset vitkd-miniature --seed $seed --teacher $teacher --distillation none"
    echo "miniature-vitkd-nkd-s$seed --preset vitkd-miniature --seed $seed --teacher $teacher"
done | xargs -P "$jobs" -L 1 "$here/run.sh"

"$(dirname "$(command -v deit)")/python" -m studies.compare "$here/vitkd-miniature.toml" --data "$1" --runs "$runs" --output "$runs/vitkd-miniature.md"
