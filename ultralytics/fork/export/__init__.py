"""Exports: verification against PyTorch, metadata, seals, integrity."""
