#!/bin/sh
# The model that ships with the project: DeiT-Ti with a distillation token, distilled from a convnet on CIFAR-10 at 96 px.
#
#     training/recipes/cifar10.sh DATA [WEIGHTS [TEACHER_WEIGHTS]]
#
# DATA holds train.parquet and test.parquet. WEIGHTS are DeiT-Ti's on ImageNet and TEACHER_WEIGHTS EfficientNet-Lite0's;
# both come from Hugging Face unless given.
# cifar10-teacher.jsonl and cifar10-student.jsonl next to this file are the logs of the run that made the model that ships.
set -eu
data=$1
weights=${2:-deit_tiny_patch16_224.fb_in1k}
teacher_weights=${3:-tf_efficientnet_lite0.in1k}

# Teacher: a convnet, because a student gains more from one than from a transformer (arXiv:2012.12877 section 5.2). It starts
# from ImageNet's weights; the stem and the first two blocks stay frozen. In fp32, because depthwise convolutions train more
# slowly in bf16 on a CPU.
deit train --name cifar10-teacher --data "$data" --seed 0 \
    --initial-checkpoint "$teacher_weights" \
    --model tf_efficientnet_lite0 --image-size 128 --crop-pct 1.0 --drop-path 0 --freeze-blocks 2 \
    --epochs 6 --warmup-epochs 1 --batch-size 128 \
    --learning-rate 1e-3 --warmup-learning-rate 2e-4 --min-learning-rate 1e-6 --weight-decay 0.05 \
    --min-crop-area 0.6 --random-erasing 0 --mixing-probability 0 --label-smoothing 0.1 \
    --precision fp32 --channels-last --pixel-bank

# Student: its distillation token learns the teacher's decision (section 4). No mixing: eight epochs are too few to learn
# from mixed images.
deit train --name cifar10-student --data "$data" --seed 0 \
    --initial-checkpoint "$weights" \
    --model deit_tiny_distilled_patch16_224 --image-size 96 --crop-pct 1.0 --drop-path 0 \
    --distillation hard --teacher runs/cifar10-teacher/checkpoint \
    --epochs 8 --warmup-epochs 1 --batch-size 128 --learning-rate 3e-4 --min-learning-rate 1e-6 --weight-decay 0.05 \
    --clip-grad-norm 1 --min-crop-area 0.5 --random-erasing 0 --mixing-probability 0 --label-smoothing 0.1 \
    --precision bf16 --channels-last --pixel-bank --evaluate-every 2

# For ONNX Runtime, which `make serve` installs.
deit export --checkpoint runs/cifar10-student/checkpoint --name deit_cifar10 --images "$data" \
    --precision fp32,int8 --engine onnxruntime --repository model_repository
