"""Show the attention of FLatten Transformer for one query, before and after focusing.

Focused linear attention (https://arxiv.org/abs/2308.00442) never stores its attention. For a query i of a head, it is
the row

    a_ij = phi(q_i) . phi(k_j) / (phi(q_i) . sum_j phi(k_j) + 1e-6)

over all positions j, with phi(x) = f_p(y) and y = (relu(x) + 1e-6) / softplus(scale). Before focusing, phi(x) is y
itself: the map with the exponent 1. With spatial reduction, positions are those of the reduced map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from _explain import drawing
from _explain.detections import choose_query
from _explain.drawing import Panel
from _explain.image_view import View, load_view
from _explain.network import OpenedModel, open_model, prepare_gradients, run_detection
from _explain.routing import module_label, module_paths
from ultralytics.engine.model import Model
from ultralytics.nn.AddModules.FLA import EPS, FocusedLinearAttention, focus
from ultralytics.nn.AddModules.layers.tokens import split_heads

MODULE = FocusedLinearAttention


@dataclass(frozen=True)
class AttentionCall:
    """The inputs and the result of a module's attention in a run.

    Attributes:
        size: Height and width of its map in positions.
        q: (1, N, C) queries.
        k: (1, M, C) keys.
        v: (1, heads, M, d) values.
        attended: (1, N, C) attention, before the convolution of v and the projection.
    """

    size: tuple[int, int]
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    attended: torch.Tensor


@dataclass(frozen=True)
class Focusing:
    """The attention of one query of a module.

    Attributes:
        label: The module's row and path.
        query: (x, y) in pixels of the image.
        position: Row and column of the query's position in the module's map.
        keys: Height and width of the keys' grid.
        before, after: (H, W), what each position has of the attention, mean of the heads; NaN where no key is.
        effective_before, effective_after: Effective number of positions: e to the power of the entropy of a head's
            attention, mean of the heads.
    """

    label: str
    query: tuple[float, float]
    position: tuple[int, int]
    keys: tuple[int, int]
    before: np.ndarray
    after: np.ndarray
    effective_before: float
    effective_after: float


def focusing(
    model: str | Path | Model | nn.Module | OpenedModel,
    image: str | Path | np.ndarray | View,
    query: Sequence[float] | None = None,
    conf: float = 0.25,
    classes: Sequence[int] | None = None,
    imgsz: int | Sequence[int] | None = None,
) -> list[Focusing]:
    """Compute the attention of one query in each module of focused linear attention.

    Args:
        model: A checkpoint, a model file, or what was made of one; it is not changed.
        image: A file, or (height, width, 3) bytes, BGR.
        query: (x, y) in pixels of the image; by default the centre of the best detection, or the image's.
        conf: Least score of that detection.
        classes: Of that detection, all by default.
        imgsz: Side of the input, or its height and width, in pixels; by default what the model was trained with.

    Returns:
        One for each module, in the order in which they run; none where the model has no such module.

    Raises:
        ValueError: If a model, an image or a query is not valid.
        OSError: If a file cannot be read.
    """
    opened = open_model(model, imgsz)
    view = load_view(image, opened)
    query = choose_query(opened, view, query, conf, classes)
    with prepare_gradients(opened.net), torch.no_grad(), record_attention(opened.net) as calls:
        run_detection(opened.net, view.x)
        modules = dict(opened.net.named_modules())
        return [
            focus_at_query(call, modules[path], module_label(opened.net, path), view, query)
            for path, call in calls.items()
        ]


@contextlib.contextmanager
def record_attention(net: nn.Module) -> Iterator[dict[str, AttentionCall]]:
    """Record the attention of each module while a network runs on one image.

    The step from queries, keys and values to attention is wrapped. Hooks on the layers before it would not work: a
    module with hooks multiplies in another way.

    Yields:
        What each module attended with, by its path.
    """
    calls: dict[str, AttentionCall] = {}
    sizes: dict[str, tuple[int, int]] = {}

    def watch(path: str, m: FocusedLinearAttention) -> None:
        attend = m._attend

        def seen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            attended, values = attend(q, k, v)
            # Copies, since the module adds to the attention in place
            calls[path] = AttentionCall(sizes[path], q.clone(), k.clone(), values.clone(), attended.clone())
            return attended, values

        m._attend = seen

    watching = {path: net.get_submodule(path) for path in module_paths(net, MODULE)}
    handles = []
    for path, m in watching.items():
        watch(path, m)
        keep = lambda _, inputs, path=path: sizes.update({path: tuple(inputs[0].shape[2:])})  # noqa: E731
        handles.append(m.register_forward_pre_hook(keep))
    try:
        yield calls
    finally:
        for m in watching.values():
            del m._attend
        for handle in handles:
            handle.remove()


def attention_rows(call: AttentionCall, m: FocusedLinearAttention, position: int, factor: float) -> torch.Tensor:
    """Compute the full attention of a query.

    Args:
        call: What the module attended with.
        m: The module.
        position: The query's, by rows.
        factor: The exponent: the module's own, or 1 for the attention before focusing.

    Returns:
        (heads, M) shares of the positions. Those of a head sum to 1, but for the 1e-6: to less where queries and keys
        hardly have anything in common.
    """
    inverse_scale = F.softplus(m.scale.detach().float()).reciprocal().flatten()
    q, k = (
        split_heads(focus(t, inverse_scale, factor)[0], m.num_heads)[0]
        for t in (call.q[:, position : position + 1], call.k)
    )
    products = (q @ k.transpose(-2, -1)).squeeze(1)  # (heads, M)
    return products / (products.sum(dim=-1, keepdim=True) + EPS)


def focus_at_query(
    call: AttentionCall, m: FocusedLinearAttention, name: str, view: View, query: tuple[float, float]
) -> Focusing:
    """Compute the attention of a query from a module's recorded call."""
    row, column = view.frame.position(query, call.size)
    keys = tuple((side - m.sr_ratio) // m.sr_ratio + 1 for side in call.size)
    shares = [attention_rows(call, m, row * call.size[1] + column, p) for p in (1.0, m.focusing_factor)]
    before, after = (
        expand_to_map(share.mean(dim=0).view(keys).cpu().numpy(), m.sr_ratio, call.size) for share in shares
    )
    return Focusing(name, query, (row, column), keys, before, after, *map(effective_positions, shares))


def expand_to_map(values: np.ndarray, stride: int, size: tuple[int, int]) -> np.ndarray:
    """Expand the values of a reduced grid to the (H, W) map below it; NaN behind the last complete cell."""
    spread = np.kron(values, np.ones((stride, stride)))
    return np.pad(spread, [(0, side - n) for side, n in zip(size, spread.shape)], constant_values=np.nan)


def effective_positions(shares: torch.Tensor) -> float:
    """Compute the effective number of positions of (heads, M) shares, as the mean of the heads.

    The weight of a head is the sum of its shares: zero if the ReLU leaves nothing of the query.
    """
    sums = shares.sum(dim=-1).clamp(min=torch.finfo(shares.dtype).tiny)
    entropies = torch.special.entr(shares / sums.unsqueeze(-1)).sum(dim=-1)
    return float((entropies.exp() * sums).sum() / sums.sum())


def draw_focusing(found: list[Focusing], view: View, opened: OpenedModel) -> Figure:
    """Draw a row of panels for each module: the query, and its attention before and after focusing."""
    title = "Focused linear attention: the attention of one query, before and after focusing"
    figure, panels = drawing.make_figure(3 * len(found), view.frame.shape, title, view.name, opened)
    for i, one in enumerate(found):
        draw_module(panels[3 * i : 3 * i + 3], one, view)
    return figure


def draw_module(panels: list[Panel], found: Focusing, view: View) -> None:
    """Draw the three panels of a module, both maps in the same colours."""
    h, w = found.keys
    drawing.draw_image(panels[0], view, f"{found.label}\nthe query, which attends to {h} x {w} positions")
    drawing.draw_legend(panels[0], [drawing.draw_point(panels[0], found.query)])
    pairs = ("before", found.before, found.effective_before), ("after", found.after, found.effective_after)
    # A cell of the map has the share of its key; an even attention gives each key one part in h * w
    most = max(float(np.nanmax(values)) for _, values, _ in pairs) * h * w
    for panel, (when, values, number) in zip(panels[1:], pairs):
        title = f"{when} focusing: {number:.1f} effective of {h * w} positions"
        shown = view.frame.on_image(values * h * w, smooth=False)
        drawing.draw_heat(panel, view, shown, title, "times an even share, mean of the heads", (0, most))
        drawing.draw_point(panel, found.query)
