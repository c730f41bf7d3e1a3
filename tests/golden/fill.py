"""Deterministic weights, so that golden files hold inputs and outputs only."""

import numpy as np
import torch


def fill(module: torch.nn.Module, phase: float = 0.0) -> torch.nn.Module:
    """Fill every tensor of the state dict, taken in sorted key order, from a sine of its index; return it in eval mode.

    Tensor k of n elements gets s = sin(0.37 * arange(n) + k + phase) in its own shape, then:
    `running_var` 1 + 0.3 s; `running_mean` 0.2 s; a 1-D `weight` (a norm's) 1 + 0.2 s; a 1-D `bias` 0.1 s;
    FocusedLinearAttention's `scale` 0.3 s; any other tensor s / sqrt(n / shape[0]) (fan-in scaling).
    """
    with torch.no_grad():
        state = module.state_dict()
        for k, key in enumerate(sorted(key for key in state if not key.endswith("num_batches_tracked"))):
            t = state[key]
            s = np.sin(0.37 * np.arange(t.numel()) + k + phase).reshape(t.shape)
            leaf = key.rsplit(".", 1)[-1]
            if leaf == "running_var":
                v = 1 + 0.3 * s
            elif leaf == "running_mean":
                v = 0.2 * s
            elif leaf == "weight" and t.ndim == 1:
                v = 1 + 0.2 * s
            elif leaf == "bias":
                v = 0.1 * s
            elif leaf == "scale":
                v = 0.3 * s
            else:
                v = s / np.sqrt(t.numel() / t.shape[0])
            t.copy_(torch.from_numpy(v))
    return module.eval()
