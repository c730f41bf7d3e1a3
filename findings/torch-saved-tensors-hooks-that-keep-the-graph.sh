#!/usr/bin/env bash
# Packages:  torch 2.15.0, numpy 2.4.6, CPU
# Expected:  inside `torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)`, the pair of hooks that the
#            documentation shows, a step keeps what it keeps without hooks: its graph is freed when nothing refers to it.
# Seen:      a branch that leads to no loss and whose operation saves its own output (relu, sigmoid, exp, softmax) is never
#            freed, and holds all of the graph before it: the pack hook gets the output with its node, and the node keeps
#            what the hook gives back. The garbage collector does not find the cycle, as it lies in C++. With
#            `x.detach()` in place of `x` all is freed, as it is without hooks.
# Matters:   detectors have such branches (scores that only choose queries); a training grows with each step, by what
#            custom Functions hold in that graph.
# Source:    weak references to an object that a Function of the graph holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 .venv
uv pip install -q -p .venv torch==2.15.0 numpy==2.4.6
.venv/bin/python - <<'EOF'
import gc
import weakref
from contextlib import nullcontext

import torch
from torch.autograd.graph import saved_tensors_hooks


class Held:
    """What a Function keeps for its backward."""


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, held):
        ctx.held = held
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2, None


def is_freed(function, hooks):
    """Whether the graph of a step is freed, where one of its branches leads to no loss."""
    held, x = Held(), torch.rand(4, requires_grad=True)
    freed = weakref.ref(held)
    with hooks:
        y = Double.apply(x, held)
        branch, loss = function(y), y.square().sum()
    loss.backward()
    del held, x, y, branch, loss
    gc.collect()
    return freed() is None


print("torch", torch.__version__)
HOOKS = {
    "none": nullcontext,
    "x": lambda: saved_tensors_hooks(lambda x: x, lambda x: x),
    "x.detach()": lambda: saved_tensors_hooks(lambda x: x.detach(), lambda x: x),
}
SAVE_OUTPUT = {"relu": torch.relu, "sigmoid": torch.sigmoid, "exp": torch.exp, "softmax": lambda x: x.softmax(0)}
SAVE_INPUT = {"square": torch.square, "sin": torch.sin}
for name, function in {**SAVE_OUTPUT, **SAVE_INPUT}.items():
    freed = {hook: is_freed(function, make()) for hook, make in HOOKS.items()}
    print(f"{name}: the graph is freed, by what the pack hook gives back: {freed}")
    assert freed == {"none": True, "x": name in SAVE_INPUT, "x.detach()": True}, name
EOF
