"""Begin a module: write its file, and a test that runs at once.

    uv run scripts/new_module.py MyAttention                              # its output has the input's channels
    uv run scripts/new_module.py MyBlock --reader changes_channels        # its row gives the output's channels

The file is in ultralytics/nn/AddModules/ and the test in tests/modules/. The row of the module works in a model file
from then on. The test tries shapes, gradients, the row and an export, so that it tells what a change of yours breaks.
"""

from __future__ import annotations

import argparse
import keyword
import re
import sys
from pathlib import Path

from torch import nn

from ultralytics.fork.atomic_write import write_atomically
from ultralytics.fork.errors import Refused
from ultralytics.nn import modules as upstream
from ultralytics.nn.AddModules import registry

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = {
    "keeps_channels": ("dim: int", "dim, dim", "Channels of the input and the output", "dim", "[]"),
    "changes_channels": ("c1: int, c2: int", "c1, c2", "Channels of the input and of the output", "c2", "[24]"),
}
MODULE = '''"""{name}: what it does, in a line.

Paper: title, venue and link.

    y = x + conv(x), the equation that the module computes
"""

from __future__ import annotations

import torch
from torch import nn

from ultralytics.nn.AddModules.registry import {reader}, register

__all__ = ("{name}",)


@register({reader})
class {name}(nn.Module):
    """What it does to a map.

    Args:
        {arguments}: {meaning}.

    Shapes:
        Input (B, {input}, H, W), output (B, {output}, H, W).
    """

    def __init__(self, {parameters}):
        super().__init__()
        self.conv = nn.Conv2d({channels}, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, {input}, H, W) to (B, {output}, H, W)."""
        return self.conv(x)
'''
TEST = '''"""{name}: shapes, gradients, its row in a model file, and an export."""

import io

import numpy as np
import onnxruntime
import pytest
import torch

from ultralytics.nn.AddModules.{name} import {name}
from ultralytics.nn.tasks import parse_model


def build_row():
    """Build the module as a model file does: behind a convolution of 16 channels."""
    rows = [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "{name}", {row}]]
    layers, _ = parse_model({{"nc": 1, "backbone": rows, "head": []}}, 3, verbose=False)
    return layers[1]


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (20, 20), (13, 9)])
def test_shapes_and_gradients(size):
    module = build_row()
    assert isinstance(module, {name})
    x = torch.randn(2, 16, *size, requires_grad=True)
    out = module(x)
    assert out.shape == (2, {width}, *size) and torch.isfinite(out).all()
    out.square().mean().backward()
    assert x.grad.abs().sum() > 0
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_export():
    module, x = build_row().eval(), torch.randn(1, 16, 8, 12)
    file = io.BytesIO()
    torch.onnx.export(module, (x,), file, opset_version=17, dynamo=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {{session.get_inputs()[0].name: x.numpy()}})
    np.testing.assert_allclose(found, module(x).detach().numpy(), atol=1e-4, rtol=1e-3)
'''


def write_module(name: str, reader: str, root: Path = ROOT) -> list[Path]:
    """Write the two files.

    Raises:
        Refused: For a name that is taken or not one of a class, or a file that exists; nothing is written.
    """
    if not re.fullmatch(r"[A-Z]\w*", name, re.ASCII) or keyword.iskeyword(name):
        raise Refused(f"{name!r}: expected the name of a class, such as MyAttention")
    taken = registry.NAMES.get(name) or getattr(upstream, name, None) or getattr(nn, name, None)
    if taken is not None:
        raise Refused(f"the name {name} is taken by {taken.__module__}; choose another")
    parameters, channels, meaning, output, row = TEMPLATES[reader]
    values = {"name": name, "reader": reader, "parameters": parameters, "channels": channels, "meaning": meaning}
    values |= {"arguments": channels if reader == "changes_channels" else "dim", "input": parameters.split(":")[0]}
    values |= {"output": output, "row": row, "width": 24 if reader == "changes_channels" else 16}
    files = {
        root / "ultralytics" / "nn" / "AddModules" / f"{name}.py": MODULE,
        root / "tests" / "modules" / f"test_{name}.py": TEST,
    }
    existing = next((file for file in files if file.exists()), None)
    if existing:
        raise Refused(f"{existing} exists; choose another name")
    for file, template in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, template.format(**values).encode())
    return list(files)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the class and its file")
    parser.add_argument("--reader", choices=sorted(TEMPLATES), default="keeps_channels", help="how its row reads")
    args = parser.parse_args()
    try:
        module, test = write_module(args.name, args.reader)
    except (OSError, Refused) as e:
        sys.exit(f"new_module.py: {e}")
    row = f"[-1, 1, {args.name}, {TEMPLATES[args.reader][4]}]"
    print(f"{module.relative_to(ROOT)}: the module; its row is {row}\n{test.relative_to(ROOT)}: its test; run it by\n")
    print(f"    uv run pytest {test.relative_to(ROOT)}\n")
    print(f"    uv run scripts/graft.py rtdetr-r18.yaml --wrap 3 {args.name} --out my.yaml")


if __name__ == "__main__":
    main()
