#!/usr/bin/env bash
# Packages:  torch 2.15.0, numpy 2.4.6, CPU
# Expected:  `torch.func.functional_call(model, tensors, inputs)` runs a model with other tensors and leaves it as it is.
# Seen:      a module that is registered under two names keeps the tensors that were passed: its parameters are now those,
#            without an error. It is so with one name, of which `tie_weights` makes two, and with both names and
#            `tie_weights=False`. Each tensor is swapped once for each name; the second swap takes the new tensor for the
#            original, and puts it back last. Two modules that share a parameter are not affected. With one name a module
#            and `tie_weights=False` the model stays as it is.
# Matters:   a trial on the meta device leaves such a model without weights (CoaT of timm shares its position encodings).
# Source:    the parameters before and after.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 .venv
uv pip install -q -p .venv torch==2.15.0 numpy==2.4.6
.venv/bin/python - <<'EOF'
import torch
from torch import nn
from torch.func import functional_call


class SharedModule(nn.Module):
    """One layer under two names."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(2, 2)
        self.list = nn.ModuleList([self.one])

    def forward(self, x):
        return self.list[0](self.one(x))


class SharedParameter(nn.Module):
    """One parameter in two layers."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(self.one(x))


def stays(make, all_names, tie_weights):
    """Whether a model has its parameters after a call with others."""
    model, x = make(), torch.ones(1, 2)
    before = list(model.parameters())
    named = dict(model.named_parameters(remove_duplicate=not all_names))
    functional_call(model, {name: torch.zeros_like(p) for name, p in named.items()}, (x,), tie_weights=tie_weights)
    return all(a is b for a, b in zip(model.parameters(), before, strict=True))


print("torch", torch.__version__)
for make in (SharedModule, SharedParameter):
    for all_names, tie_weights in ((False, True), (True, False), (False, False)):
        result = stays(make, all_names, tie_weights)
        names = "all names" if all_names else "one name"
        print(f"{make.__name__}, {names}, tie_weights={tie_weights}: the model stays as it is: {result}")
        assert result == (make is SharedParameter or not (all_names or tie_weights))
EOF
