#!/bin/sh
# DeiT's tables of strategies and teachers in miniature on CIFAR-10: no teacher, soft and hard distillation through either
# token, two class tokens, and a transformer that teaches as well as the convnet; three seeds each; then the comparison.
#
#     training/recipes/miniature.sh DATA [CONVNET TRANSFORMER]      both are checkpoint folders
#
# Without them a small convnet and a DeiT-Ti are trained; the latter starts from WEIGHTS, DeiT-Ti's on ImageNet. Its top-1
# must be that of the convnet to within a point: TRANSFORMER_OPTIONS, options of deit train, change it.
# Stopped at any point it goes on when started again. JOBS=2 trains two arms at a time, each on half of the cores.
set -eu
here=$(dirname "$0")
. "$here/arms.sh"

if [ $# -eq 3 ]; then
    convnet=$2 transformer=$3
else
    # on images enlarged to 64 px, because timm's stem divides the resolution by four
    "$here/run.sh" miniature-teacher --seed 0 \
        --model resnet18 --model-arg 'channels=[32,64,128,256]' --model-arg 'layers=[1,1,1,1]' \
        --image-size 64 --crop-pct 1.0 --drop-path 0 --pixel-bank --evaluate-every 5 \
        --epochs 10 --warmup-epochs 1 --batch-size 128 --learning-rate 2e-3 --weight-decay 0.05 \
        --min-crop-area 0.4 --random-erasing 0 --mixing-probability 0 --label-smoothing 0.1
    # shellcheck disable=SC2086  # the options are words
    "$here/run.sh" miniature-transformer --seed 0 --preset fine-tune \
        --initial-checkpoint "${WEIGHTS:-deit_tiny_patch16_224.fb_in1k}" --image-size 64 --crop-pct 1.0 \
        --train-images 15000 --batch-size 128 --learning-rate 4e-4 --epochs 2 ${TRANSFORMER_OPTIONS:-}
    convnet=$runs/miniature-teacher/checkpoint transformer=$runs/miniature-transformer/checkpoint
fi

two_tokens="--model deit_tiny_distilled_patch16_224"
for seed in $seeds; do
    common="--preset miniature --seed $seed"
    # Arms of one teacher and kind of answer show it the same images, so it is asked once for each seed: by the first of
    # two arms, if they do not run side by side, which this order sees to.
    decisions="--teacher $convnet --teacher-cache $runs/miniature-decisions-s$seed"
    logits="--teacher $convnet --teacher-cache $runs/miniature-logits-s$seed --label-weight 0.9 --temperature 3"
    echo "miniature-none-s$seed $common"
    echo "miniature-hard-class-s$seed $common --distillation hard --token class $decisions"
    echo "miniature-soft-class-s$seed $common --distillation soft --token class $logits"
    echo "miniature-hard-token-s$seed $common --distillation hard $two_tokens $decisions"
    echo "miniature-soft-token-s$seed $common --distillation soft $two_tokens $logits"
    echo "miniature-two-class-tokens-s$seed $common --distillation two-class-tokens $two_tokens"
    echo "miniature-transformer-token-s$seed $common --distillation hard $two_tokens --teacher $transformer"
done | train_arms

compare miniature
