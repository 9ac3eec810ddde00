#!/bin/sh
# The model that ships with the project: the first eight blocks of DeiT-Ti with a distillation token, on CIFAR-10 at 96 px.
#
#     training/recipes/cifar10.sh DATA [WEIGHTS]
#
# DATA holds train.parquet and test.parquet; WEIGHTS are DeiT-Ti's on ImageNet, from Hugging Face unless given.
# cifar10-teacher.jsonl and cifar10-student.jsonl next to this file are the logs of the run that made the model that ships.
set -eu
data=$1
weights=${2:-deit_tiny_patch16_224.fb_in1k}

# Teacher: the whole DeiT-Ti moved to CIFAR-10. It knows ImageNet, which two processor cores cannot teach it.
deit train --data "$data" --name cifar10-teacher --seed 0 \
    --initial-checkpoint "$weights" \
    --model deit_tiny_patch16_224 --image-size 96 --crop-pct 1.0 --drop-path 0 \
    --epochs 4 --warmup-epochs 1 --batch-size 128 --learning-rate 2e-4 --weight-decay 0.05 --clip-grad-norm 1 \
    --min-crop-area 0.5 --random-erasing 0 --mixing-probability 0 --label-smoothing 0.1

# Student: starts from the teacher's first eight of twelve blocks; its distillation token learns the teacher's decision
# (arXiv:2012.12877 section 4). No mixing: eight epochs are too few to learn from mixed images.
deit train --data "$data" --name cifar10-student --seed 0 \
    --initial-checkpoint runs/cifar10-teacher/checkpoint \
    --model deit_tiny_distilled_patch16_224 --model-arg depth=8 --image-size 96 --crop-pct 1.0 --drop-path 0 \
    --distillation hard --teacher runs/cifar10-teacher/checkpoint \
    --epochs 8 --warmup-epochs 1 --batch-size 128 --learning-rate 3e-4 --weight-decay 0.05 --clip-grad-norm 1 \
    --min-crop-area 0.5 --random-erasing 0 --mixing-probability 0 --label-smoothing 0.1

# For ONNX Runtime, which `make serve` installs.
deit export --checkpoint runs/cifar10-student/checkpoint --name deit_cifar10 --images "$data" \
    --precision fp32 --engine onnxruntime --repository model_repository
