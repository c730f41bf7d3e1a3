"""Upstream's wheels and source distributions: found or downloaded, and compared with their recorded hashes."""
