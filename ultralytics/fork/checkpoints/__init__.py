"""Open checkpoints (.pt) without running what is in them."""
