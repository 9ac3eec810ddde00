#!/bin/sh
# The model that ships with the project: a DeiT at 32 pixels, distilled on CIFAR-10 from a convnet trained here too.
#
#     training/recipes/cifar10.sh DATA            DATA holds train.parquet and test.parquet
#
# cifar10-teacher.jsonl and cifar10-student.jsonl beside this file are the logs of the run that made the model that ships.
# It ran before each image drew its augmentation from a seed of its own: this repeats the run, not its last bits.
set -eu
data=$1

# Teacher: half-width ResNet-18 on images enlarged to 64 px, because timm's stem divides the resolution by four.
deit train --data "$data" --name cifar10-teacher --seed 0 \
    --model resnet18 --model-arg 'channels=[32,64,128,256]' --image-size 64 --crop-pct 1.0 --drop-path 0 \
    --epochs 15 --warmup-epochs 1 --batch-size 128 --learning-rate 2e-3 --weight-decay 0.05 \
    --min-crop-area 0.4 --random-erasing 0 --mixing-probability 0 --label-smoothing 0.1

# Student: the distillation token learns the teacher's decision (arXiv:2012.12877 section 4). Mixing less often than the
# paper's every batch, because 15 epochs are too few for a student to fit images that are always mixed.
deit train --data "$data" --name cifar10-student --seed 0 \
    --model deit_tiny_distilled_patch16_224 --model-arg patch_size=4 --model-arg depth=6 --image-size 32 --crop-pct 1.0 \
    --distillation hard --teacher runs/cifar10-teacher/checkpoint --drop-path 0 \
    --epochs 15 --warmup-epochs 1 --batch-size 128 --learning-rate 1e-3 --weight-decay 0.05 --clip-grad-norm 1 \
    --random-erasing 0 --mixing-probability 0.5 --label-smoothing 0.1

deit export --checkpoint runs/cifar10-student/checkpoint --name deit_cifar10 --images "$data" --repository model_repository
