"""Parts of scripts/explain.py."""
