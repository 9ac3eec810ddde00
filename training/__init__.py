"""Distillation of DeiT: from images and a teacher to a checkpoint folder. Needs torch and timm."""
