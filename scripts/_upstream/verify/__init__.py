"""Proofs that a patched tree is right: its models, the API that it uses, its overrides."""
