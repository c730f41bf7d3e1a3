"""Parts of scripts/graft.py."""
