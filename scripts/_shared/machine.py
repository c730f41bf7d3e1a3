"""Describe the machine on which results were measured."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch


def describe_machine(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor with the number of torch's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"(?m)^model name\s*: (.*)$", cpuinfo.read_text()) if cpuinfo.is_file() else []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
