"""Data sets: download consent, data YAML, label caches and errors, images, archives."""
