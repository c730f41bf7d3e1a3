"""Parts of scripts/upstream.py: upstream's releases, the patch queue, and the tree that both make."""
