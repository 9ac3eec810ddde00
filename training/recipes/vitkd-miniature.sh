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
. "$here/arms.sh"

if [ -n "${2:-}" ]; then
    teacher=$2
else
    train_wide vitkd-miniature-teacher
    teacher=$runs/vitkd-miniature-teacher/checkpoint
fi

for seed in $seeds; do
    echo "miniature-none-s$seed --preset miniature --seed $seed"
    echo "miniature-nkd-s$seed --preset vitkd-miniature --seed $seed --teacher $teacher --features none"
    echo "miniature-vitkd-s$seed --preset vitkd-miniature --seed $seed --teacher $teacher --distillation none"
    echo "miniature-vitkd-nkd-s$seed --preset vitkd-miniature --seed $seed --teacher $teacher"
done | train_arms

compare vitkd-miniature
