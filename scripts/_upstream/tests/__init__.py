"""Upstream's own tests, run on the untouched release and on the fork."""
