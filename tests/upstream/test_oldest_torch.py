"""The oldest torch that pyproject.toml allows runs the modules: build, train a step, save, open, fuse."""

import os
import re
import subprocess

import pytest
from conftest import PYTHONS, ROOT, TINY, find_python

# Of the same time as the oldest torch, and with builds for the oldest Python
TOGETHER = {"2.3": ["torch==2.3.0", "torchvision==0.18.0", "numpy<2", "opencv-python<4.12"]}
CODE = """
import sys
import torch
from ultralytics import RTDETR

print("torch", torch.__version__)
for name in sys.argv[1:]:
    torch.manual_seed(0)
    model = RTDETR(f"{name}.yaml")
    net = model.model.train()
    net.nc = 3
    batch = {"img": torch.rand(2, 3, 96, 96), "cls": torch.zeros(2, 1), "batch_idx": torch.arange(2.0)}
    loss, _ = net.loss({**batch, "bboxes": torch.full((2, 4), 0.4)})
    loss.sum().backward()
    assert torch.isfinite(loss).all() and all(p.grad is not None for p in net.model[0].parameters())
    model.save(f"{name}.pt")
    again = RTDETR(f"{name}.pt").model.float().eval()
    x = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        before = again(x)[0]
        after = again.fuse(verbose=False)(x)[0]
    torch.testing.assert_close(before[..., :4].mean(1), after[..., :4].mean(1), atol=1e-2, rtol=0)
    print("right", name)
"""


@pytest.mark.nightly
def test_oldest_torch(tmp_path):
    """At night, as it downloads that torch."""
    floor = re.search(r'(?m)^  "torch>=([\d.]+)", # the modules', (ROOT / "pyproject.toml").read_text())[1]
    needs = [
        "einops",
        "timm>=1.0.20",
        "scipy",
        "psutil",
        "polars",
        "pyyaml",
        "requests",
        "matplotlib",
        "ultralytics-thop",
    ]
    packages = [flag for need in [*TOGETHER[floor], *needs] for flag in ("--with", need)]
    command = ["uv", "run", "--no-project", "--python", find_python(PYTHONS[0]) or PYTHONS[0], *packages]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, "python", "-c", CODE, *TINY], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"torch {floor}" in done.stdout and done.stdout.count("right") == len(TINY)
