#!/bin/sh
# ViTKD, NKD and the studies of ViTKD's paper in miniature on CIFAR-10: mimicking or generation alone, the last blocks, the
# attention's output, weights of a third and three times, and a teacher of another architecture; three seeds each; then the
# comparison.
#
#     training/recipes/vitkd-miniature.sh DATA [TEACHER OTHER]      checkpoint folders of transformers of 4 x 4 patches
#
# Without them a DeiT that is twice as wide is trained, and a DeiT III of the same width and depth as the other one.
# Stopped at any point it goes on when started again. JOBS=2 trains two arms at a time, each on half of the cores.
set -eu
here=$(dirname "$0")
. "$here/arms.sh"

# NAME OPTION...: a transformer that teaches, twice as wide, and on all images: it has seen five times what its students see.
train_wide() {
    "$here/run.sh" "$@" --seed 0 --preset miniature --train-images 50000 --epochs 12 --warmup-epochs 2 --evaluate-every 6 \
        --model-arg patch_size=8 --model-arg embed_dim=192 --model-arg num_heads=3 --model-arg depth=6
}

if [ $# -eq 3 ]; then
    teacher=$2 other=$3
else
    train_wide vitkd-miniature-teacher
    train_wide vitkd-miniature-other --model deit3_small_patch16_224
    teacher=$runs/vitkd-miniature-teacher/checkpoint other=$runs/vitkd-miniature-other/checkpoint
fi

for seed in $seeds; do
    common="--preset vitkd-miniature --seed $seed --epochs 12 --warmup-epochs 2 --evaluate-every 6"
    vitkd="$common --distillation none --teacher $teacher"
    echo "vitkd-none-s$seed $common --distillation none --features none"
    echo "vitkd-nkd-s$seed $common --teacher $teacher --features none"
    echo "vitkd-full-s$seed $vitkd"
    echo "vitkd-full-nkd-s$seed $common --teacher $teacher"
    echo "vitkd-mimic-s$seed $vitkd --vitkd-generate none"
    echo "vitkd-generate-s$seed $vitkd --vitkd-mimic none"
    echo "vitkd-deep-s$seed $vitkd --vitkd-mimic=-2,-1 --vitkd-generate none"
    echo "vitkd-mha-s$seed $vitkd --vitkd-point mha --vitkd-generate none"
    echo "vitkd-alpha-third-s$seed $vitkd --vitkd-mimic-weight 1.51"
    echo "vitkd-alpha-triple-s$seed $vitkd --vitkd-mimic-weight 13.56"
    echo "vitkd-beta-third-s$seed $vitkd --vitkd-generate-weight 0.0753"
    echo "vitkd-beta-triple-s$seed $vitkd --vitkd-generate-weight 0.678"
    echo "vitkd-other-s$seed $common --distillation none --teacher $other"
done | train_arms

compare vitkd-miniature
