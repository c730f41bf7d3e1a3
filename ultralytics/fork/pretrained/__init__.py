"""Pretrained weights: alignment with changed architectures, and backbones of timm."""
