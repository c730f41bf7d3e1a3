"""Parts of scripts/data.py."""
