"""What scripts/upstream.py does: upstream's releases, the patch queue, and the tree that they make."""
