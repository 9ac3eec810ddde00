#!/bin/sh
# The model that ships, on one GPU in minutes: a convnet learns CIFAR-10 from nothing, then teaches DeiT-Ti with a
# distillation token, cut to a depth and an image size. What is done is left as it is; what was stopped goes on.
#
#     training/recipes/cifar10-gpu.sh DATA WEIGHTS
#
# DATA holds train.parquet and test.parquet; WEIGHTS are DeiT-Ti's on ImageNet, also in half precision.
# Settings, by environment:
#     VARIANTS         students, DEPTH:IMAGE_SIZE each, trained side by side; "8:96 12:96"
#     TEACHER          timm's name of the convnet; resnet34d
#     TEACHER_SIZE     side of its images in pixels; 96
#     TEACHER_EPOCHS   40
#     STUDENT_EPOCHS   80
#     TEACHER_OPTIONS, STUDENT_OPTIONS   more options of deit train, which come last and so win
#     WORKERS          processes that decode the images once; one for each core
#     DEIT             the command; `python -m deit` where no deit is installed
set -eu
data=$1
weights=$2
recipes=$(dirname "$0")
runs=${DEIT_TRAIN_RUNS:-runs}
workers=${WORKERS:-$(nproc)}
if [ -z "${DEIT:-}" ]; then
    if command -v deit > /dev/null; then DEIT=deit; else DEIT="python -m deit"; fi
fi
export DEIT

teacher=cifar10-${TEACHER:-resnet34d}
# shellcheck disable=SC2086  # the options are words
sh "$recipes/run.sh" "$teacher" --data "$data" --seed 0 --pixel-bank --workers "$workers" --evaluate-every 10 \
    --model "${TEACHER:-resnet34d}" --image-size "${TEACHER_SIZE:-96}" --crop-pct 1.0 --drop-path 0 --channels-last \
    --epochs "${TEACHER_EPOCHS:-40}" --warmup-epochs 3 --batch-size 512 \
    --optimizer sgd --learning-rate 0.3 --min-learning-rate 1e-4 --warmup-learning-rate 1e-3 --weight-decay 5e-4 \
    --min-crop-area 0.35 --random-erasing 0 --mixup-alpha 0 --cutmix-alpha 1 --mixing-probability 0.5 \
    --label-smoothing 0.1 ${TEACHER_OPTIONS:-}

# The blocks that a shallower student keeps are DeiT-Ti's first ones. Mixed at half of the batches: the teacher decides on
# what the student sees, so its label follows the mix (arXiv:2012.12877 section 4).
students=
processes=
for variant in ${VARIANTS:-8:96 12:96}; do
    depth=${variant%:*} size=${variant#*:}
    student=cifar10-student-$depth-$size
    # shellcheck disable=SC2086
    sh "$recipes/run.sh" "$student" --data "$data" --seed 0 --pixel-bank --workers "$workers" --evaluate-every 10 \
        --initial-checkpoint "$weights" \
        --model deit_tiny_distilled_patch16_224 --model-arg "depth=$depth" --image-size "$size" --crop-pct 1.0 \
        --distillation hard --teacher "$runs/$teacher/checkpoint" \
        --epochs "${STUDENT_EPOCHS:-80}" --warmup-epochs 3 --batch-size 512 --drop-path 0.05 \
        --learning-rate 6e-4 --min-learning-rate 1e-6 --weight-decay 0.05 --clip-grad-norm 1 \
        --min-crop-area 0.35 --random-erasing 0 --mixup-alpha 0 --cutmix-alpha 1 --mixing-probability 0.5 \
        --label-smoothing 0.1 ${STUDENT_OPTIONS:-} > "$runs/$student.log" 2>&1 &
    students="$students $student"
    processes="$processes $!"
done
status=0
for process in $processes; do
    wait "$process" || status=1
done
for student in $students; do
    tail -n 3 "$runs/$student.log"
done
[ "$status" = 0 ] || exit 1

for student in $students; do
    $DEIT evaluate --data "$data" --checkpoint "$runs/$student/checkpoint" --teacher "$runs/$teacher/checkpoint" \
        --workers "$workers" --output "$runs/$student/evaluation.json"
done
# On the machine that serves it:
#     deit export --checkpoint runs/cifar10-student-8-96/checkpoint --name deit_cifar10 --images DATA --precision fp32,int8
