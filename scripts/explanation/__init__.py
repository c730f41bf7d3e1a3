"""Parts of `scripts/explain.py`: what is computed, one file a kind of picture, and how it is drawn."""
