#!/bin/sh
# DeiT's strategies in miniature on CIFAR-10: no distillation, hard distillation through the class token, and through the
# distillation token, three seeds each; then the comparison as Markdown.
#
#     training/recipes/miniature.sh DATA [TEACHER]      TEACHER: a checkpoint folder; a small convnet is trained otherwise
#
# Stopped at any point it goes on when started again. JOBS=2 trains two arms at a time, each on half of the cores.
set -eu
here=$(dirname "$0")
. "$here/arms.sh"

if [ -n "${2:-}" ]; then
    teacher=$2
else
    train_convnet
    teacher=$runs/miniature-teacher/checkpoint
fi

for seed in $seeds; do
    echo "miniature-none-s$seed --preset miniature --seed $seed"
    echo "miniature-hard-class-s$seed --preset miniature --seed $seed" \
        "--distillation hard --token class --teacher $teacher"
    echo "miniature-hard-token-s$seed --preset miniature --seed $seed" \
        "--distillation hard --model deit_tiny_distilled_patch16_224 --teacher $teacher"
done | train_arms

compare miniature
