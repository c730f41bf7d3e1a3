"""What the patches call: one file for each patched upstream file, with its name."""
