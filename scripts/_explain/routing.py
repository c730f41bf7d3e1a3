"""Show BiFormer's routing: the regions to which a query's region attends, their affinity, and the attention.

Bi-level routing attention (https://arxiv.org/abs/2303.08810) cuts a map into regions. The mean query of a region and
the mean keys of all regions give an affinity, and the region attends to the positions of the `topk` regions of highest
affinity. The pictures show the choice of the module itself in the same run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from _explain import drawing
from _explain.detections import choose_query
from _explain.drawing import Panel
from _explain.image_view import View, load_view
from _explain.network import OpenedModel, module_name, open_model, prepare_gradients, run_detection
from ultralytics.engine.model import Model
from ultralytics.nn.AddModules.Biformer import BiLevelRoutingAttention_nchw, Regions
from ultralytics.nn.AddModules.layers.tokens import split_heads

MODULE = BiLevelRoutingAttention_nchw


@dataclass(frozen=True)
class RoutingCall:
    """The regions that a module chose in a run.

    Attributes:
        regions: The regions of its map.
        q, k: (R, L, C) queries and keys by region.
        chosen: (R, k) regions that each region attends to, best first.
    """

    regions: Regions
    q: torch.Tensor
    k: torch.Tensor
    chosen: torch.Tensor


@dataclass(frozen=True)
class Routing:
    """The routing of a query's region in one module.

    Attributes:
        label: The module's row and path.
        size: Height and width of its map in positions.
        region: Height and width of a region in positions.
        grid: Rows and columns of regions.
        query: (x, y) in pixels of the image.
        position: Row and column of the query's position.
        home: The query's region, by rows.
        chosen: The regions that it attends to, best first.
        affinity: (rows, columns) of all regions to it.
        attention: (H, W), what each position has of the query's attention, mean of the heads; NaN where it is not
            routed to.
    """

    label: str
    size: tuple[int, int]
    region: tuple[int, int]
    grid: tuple[int, int]
    query: tuple[float, float]
    position: tuple[int, int]
    home: int
    chosen: list[int]
    affinity: np.ndarray
    attention: np.ndarray

    def box(self, region: int) -> list[list[int]]:
        """Return the upper left and lower right corner of a region, in columns and rows of the map."""
        row, column = divmod(region, self.grid[1])
        (i, j), (H, W) = self.region, self.size
        return [[column * j, row * i], [min(W, (column + 1) * j), min(H, (row + 1) * i)]]


def routing(
    model: str | Path | Model | nn.Module | OpenedModel,
    image: str | Path | np.ndarray | View,
    query: Sequence[float] | None = None,
    conf: float = 0.25,
    classes: Sequence[int] | None = None,
    imgsz: int | Sequence[int] | None = None,
) -> list[Routing]:
    """Find where each module of bi-level routing attention routes the region of a query.

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
    with prepare_gradients(opened.net), torch.no_grad(), record_routing(opened.net) as calls:
        run_detection(opened.net, view.x)
    modules = dict(opened.net.named_modules())
    return [
        routing_at_query(call, modules[path], module_label(opened.net, path), view, query)
        for path, call in calls.items()
    ]


def module_paths(net: nn.Module, cls: type[nn.Module]) -> list[str]:
    """List the modules of a class in a network."""
    return [path for path, m in net.named_modules() if isinstance(m, cls)]


def module_label(net: nn.Module, path: str) -> str:
    """Return a module's name in a picture: its row, the row's module, and its path."""
    _, row, *_ = path.split(".")
    return f"row {row} {module_name(net.model[int(row)])} ({path})"


@contextlib.contextmanager
def record_routing(net: nn.Module) -> Iterator[dict[str, RoutingCall]]:
    """Record the choices of each module while a network runs.

    The choice is a method of the regions, which a module makes in each run, so the class is wrapped. Hooks on a
    module's layers would not work: a module with hooks multiplies in another way.

    Yields:
        What each module chose, by its path.
    """
    calls: dict[str, RoutingCall] = {}
    running: list[str] = []
    route = Regions.route

    def watch(self: Regions, q: torch.Tensor, k: torch.Tensor, topk: int) -> tuple:
        chosen, mask = route(self, q, k, topk)
        if running:
            calls[running[-1]] = RoutingCall(self, q, k, chosen)
        return chosen, mask

    handles = []
    for path in module_paths(net, MODULE):
        m = net.get_submodule(path)
        handles.append(m.register_forward_pre_hook(lambda *_, path=path: running.append(path)))
        handles.append(m.register_forward_hook(lambda *_: running.clear()))
    Regions.route = watch
    try:
        yield calls
    finally:
        Regions.route = route
        for handle in handles:
            handle.remove()


def routing_at_query(
    call: RoutingCall, m: BiLevelRoutingAttention_nchw, name: str, view: View, query: tuple[float, float]
) -> Routing:
    """Compute the routing of a query from a module's recorded call."""
    regions = call.regions
    size, region, grid = (tuple(map(int, t)) for t in (regions.map, regions.region, regions.grid))
    row, column = view.frame.position(query, size)
    home = row // region[0] * grid[1] + column // region[1]
    chosen = call.chosen[home].tolist()
    place = row % region[0] * region[1] + column % region[1]
    return Routing(
        name,
        size,
        region,
        grid,
        query,
        (row, column),
        home,
        chosen,
        region_affinity(call)[home].reshape(grid).cpu().numpy(),
        query_attention(call, m, home, place).cpu().numpy(),
    )


def region_affinity(call: RoutingCall) -> torch.Tensor:
    """Compute the (R, R) affinities of the regions' mean queries to their mean keys, without padding."""
    real = call.regions.real.float().unsqueeze(2)  # (R, L, 1)
    q, k = ((t.float() * real).sum(dim=1) / real.sum(dim=1) for t in (call.q, call.k))  # (R, C)
    return q @ k.T


def query_attention(call: RoutingCall, m: BiLevelRoutingAttention_nchw, home: int, place: int) -> torch.Tensor:
    """Compute the attention of one query, (H, W), mean of the heads, with NaN where it is not routed to.

    Args:
        call: What the module chose.
        m: The module.
        home: The query's region.
        place: Its place in that.
    """
    regions, chosen = call.regions, call.chosen[home]
    q = split_heads(call.q[home : home + 1, place : place + 1].float(), m.num_heads)  # (1, heads, 1, d)
    k = split_heads(call.k[chosen].flatten(0, 1).unsqueeze(0).float(), m.num_heads)  # (1, heads, topk * L, d)
    scores = (q * m.scale) @ k.transpose(-2, -1)
    scores = scores.masked_fill(~regions.real[chosen].flatten(), float("-inf"))
    found = scores.new_full((regions.R, regions.L), float("nan"))
    found[chosen] = scores.softmax(dim=-1).mean(dim=(0, 1, 2)).view(len(chosen), -1)
    return regions.restore(found.unsqueeze(2))[0, :, :, 0]


def draw_routing(found: list[Routing], view: View, opened: OpenedModel) -> Figure:
    """Draw a row of panels for each module: the regions chosen, the affinity of all, and the attention."""
    title = "BiFormer's routing: the regions that the query's region attends to"
    figure, panels = drawing.make_figure(3 * len(found), view.frame.shape, title, view.name, opened)
    for i, one in enumerate(found):
        draw_regions(panels[3 * i], one, view)
        draw_affinity(panels[3 * i + 1], one, view)
        draw_attention(panels[3 * i + 2], one, view)
    return figure


def draw_regions(panel: Panel, found: Routing, view: View) -> None:
    """Draw the regions: the query's, and those that it attends to, with their ranks."""
    (rows, columns), (i, j) = found.grid, found.region
    shown = f"{len(found.chosen)} of {rows * columns} regions ({rows} x {columns}), of {i} x {j} positions"
    drawing.draw_image(panel, view, f"{found.label}\n{shown}")
    draw_borders(panel, found, view)
    for rank, region in enumerate(found.chosen, 1):
        box = view.frame.corners(found.size, found.box(region)).flatten()
        chosen = drawing.draw_outline(panel, box, drawing.ORANGE, label="chosen, by rank")
        drawing.draw_tag(panel, str(rank), box[:2], drawing.ORANGE)
    home = view.frame.corners(found.size, found.box(found.home)).flatten()
    region = drawing.draw_outline(panel, home, drawing.SKY, style="--", label="query's region")
    drawing.draw_legend(panel, [drawing.draw_point(panel, found.query), region, chosen])


def draw_borders(panel: Panel, found: Routing, view: View) -> None:
    """Draw the borders of the regions."""
    (H, W), (i, j) = found.size, found.region
    xs = view.frame.corners(found.size, [[x, 0] for x in range(0, W, j)])[:, 0]
    ys = view.frame.corners(found.size, [[0, y] for y in range(0, H, i)])[:, 1]
    height, width = view.frame.shape
    panel.axis.vlines(xs, 0, height, color="white", lw=0.7, alpha=0.6)
    panel.axis.hlines(ys, 0, width, color="white", lw=0.7, alpha=0.6)


def draw_affinity(panel: Panel, found: Routing, view: View) -> None:
    """Draw the affinity of each region to the query's region."""
    (H, W), values = found.size, found.affinity
    shown = view.frame.on_image(np.kron(values, np.ones(found.region))[:H, :W], smooth=False)
    limits = float(values.min()), float(values.max())
    drawing.draw_heat(
        panel, view, shown, "affinity of all regions", "mean query times mean key", limits, drawing.SCORES
    )
    drawing.draw_point(panel, found.query)


def draw_attention(panel: Panel, found: Routing, view: View) -> None:
    """Draw the attention of the query, relative to an even one over the positions of the chosen regions."""
    shares = found.attention * np.isfinite(found.attention).sum()
    shown, limits = view.frame.on_image(shares, smooth=False), (0, float(np.nanmax(shares)))
    title = "attention of the query's position there"
    drawing.draw_heat(panel, view, shown, title, "times an even share, mean of the heads", limits)
    drawing.draw_point(panel, found.query)
