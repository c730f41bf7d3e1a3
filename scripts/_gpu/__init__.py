"""The parts of gpu.py: each runs in a process of its own and prints its checks as JSON."""
