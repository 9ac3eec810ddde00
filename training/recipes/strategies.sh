#!/bin/sh
# The other rows of DeiT's tables in miniature on CIFAR-10: soft distillation through either token, two class tokens, and a
# transformer that teaches as well as the convnet; three seeds each, next to the arms of miniature.sh; then the comparison.
#
#     training/recipes/strategies.sh DATA [CONVNET TRANSFORMER]      both are checkpoint folders
#
# Without them miniature.sh's convnet and a DeiT-Ti are trained; the latter starts from WEIGHTS, DeiT-Ti's on ImageNet. Its
# top-1 must be that of the convnet to within a point: TRANSFORMER_OPTIONS, options of deit train, change it.
# Stopped at any point it goes on when started again; arms that miniature.sh has trained are not trained again.
set -eu
here=$(dirname "$0")
export DEIT_TRAIN_DATA="$1" DEIT_TRAIN_WORKERS="${DEIT_TRAIN_WORKERS:-1}"
runs=${DEIT_TRAIN_RUNS:-runs}
jobs=${JOBS:-1}
seeds=${SEEDS:-0 1 2}

if [ -n "${3:-}" ]; then
    convnet=$2 transformer=$3
else
    "$here/run.sh" miniature-teacher --seed 0 \
        --model resnet18 --model-arg 'channels=[32,64,128,256]' --model-arg 'layers=[1,1,1,1]' \
        --image-size 64 --crop-pct 1.0 --drop-path 0 \
        --epochs 10 --warmup-epochs 1 --batch-size 128 --learning-rate 2e-3 --weight-decay 0.05 \
        --min-crop-area 0.4 --random-erasing 0 --mixing-probability 0 --label-smoothing 0.1
    # shellcheck disable=SC2086  # the options are words
    "$here/run.sh" strategies-transformer --seed 0 --preset fine-tune \
        --initial-checkpoint "${WEIGHTS:-deit_tiny_patch16_224.fb_in1k}" --image-size 64 --crop-pct 1.0 \
        --train-images 10000 --batch-size 128 --epochs 2 ${TRANSFORMER_OPTIONS:-}
    convnet=$runs/miniature-teacher/checkpoint transformer=$runs/strategies-transformer/checkpoint
fi

# one thread count for all arms, because another number sums in another order
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(($(nproc) / jobs))}"
two_tokens="--model deit_tiny_distilled_patch16_224"
for seed in $seeds; do
    common="--preset miniature --seed $seed"
    # arms of one teacher and kind of answer show it the same images, so it is asked once for each seed
    decisions="--teacher $convnet --teacher-cache $runs/strategies-decisions-s$seed"
    logits="--teacher $convnet --teacher-cache $runs/strategies-logits-s$seed --label-weight 0.9 --temperature 3"
    echo "miniature-none-s$seed $common"
    echo "miniature-hard-class-s$seed $common --distillation hard --token class $decisions"
    echo "miniature-hard-token-s$seed $common --distillation hard $two_tokens $decisions"
    echo "strategies-soft-class-s$seed $common --distillation soft --token class $logits"
    echo "strategies-soft-token-s$seed $common --distillation soft $two_tokens $logits"
    echo "strategies-two-class-tokens-s$seed $common --distillation two-class-tokens $two_tokens"
    echo "strategies-transformer-token-s$seed $common --distillation hard $two_tokens --teacher $transformer"
done | xargs -P "$jobs" -L 1 "$here/run.sh"

"$(dirname "$(command -v deit)")/python" -m studies.compare "$here/strategies.toml" --data "$1" --runs "$runs" --output "$runs/strategies.md"
