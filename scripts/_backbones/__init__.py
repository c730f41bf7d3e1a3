"""Parts of scripts/backbones.py."""
