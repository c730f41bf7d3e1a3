"""Draw explanations: panels over an image, colour bars, marks, and a contact sheet of all pictures.

The colours suit all kinds of colour vision: heat maps use matplotlib's inferno and viridis, whose lightness grows
evenly, and marks use Okabe and Ito's colours (https://jfly.uni-koeln.de/color).
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path

import cv2
import numpy as np
from matplotlib import patheffects, rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image, ImageColor

from _explain.detections import Detections
from _explain.image_view import View
from _explain.network import OpenedModel
from ultralytics.fork.atomic_write import write_atomically

COLUMNS = 3
DPI = 110
WIDTH, LEFT, RIGHT, ABOVE, BELOW, TITLE = 4.0, 0.45, 0.15, 0.5, 0.85, 0.7  # inches of a panel and its margins
BAR = 0.14  # inches of a colour bar's height
LINE = 0.14  # inches of a line of small text
TAG = 0.045  # share of a panel's width for a detection's number
STEPS = sorted(product(range(-9, 10), repeat=2), key=lambda step: (abs(step[0]) + abs(step[1]), step))  # from a corner
SHOWN = 1280  # most pixels of an image's longer side
HEAT, SCORES, ALPHA = "inferno", "viridis", 0.65
GROUND = -96, 351  # black and white of a ground under colours: it has less contrast
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, VERMILION, YELLOW = "#56B4E9", "#D55E00", "#F0E442"
COLOURS = ORANGE, SKY, GREEN, YELLOW, PURPLE, VERMILION, BLUE
CELL = 900  # width in pixels of a picture on the contact sheet
GAP = 24

# Names of classes and files may be in any language: common fonts; each letter uses the first that has it
EASTERN = "Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "PingFang SC", "WenQuanYi Micro Hei", "SimHei"
rcParams["font.family"] = ["DejaVu Sans", *(name for name in EASTERN if name in fontManager.get_font_names())]


@dataclass(frozen=True)
class Panel:
    """A panel of a figure.

    Attributes:
        figure: The figure.
        axis: Where the image is.
        under: Left and lower edge, width and height, of the place for a colour bar, as shares of the figure.
    """

    figure: Figure
    axis: Axes
    under: tuple[float, float, float, float]


def make_figure(
    panels: int, shape: tuple[int, int], title: str, of: str, opened: OpenedModel, below: float = BELOW
) -> tuple[Figure, list[Panel]]:
    """Make a figure of some panels, three in a row.

    Places are in inches, so that nothing overlaps, whatever the image's sides are.

    Args:
        panels: How many.
        shape: Height and width of the image that they show.
        title: What they show.
        of: Whose they are, beside the model's.
        opened: The model.
        below: Inches under a panel for numbers, legend or colour bar.
    """
    columns = min(COLUMNS, panels)
    rows = -(-panels // columns)
    high = WIDTH * min(1.5, max(0.4, shape[0] / shape[1]))
    width, height = columns * (LEFT + WIDTH + RIGHT), TITLE + rows * (ABOVE + high + below)
    found = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(found)
    untrained = "" if opened.trained else "UNTRAINED WEIGHTS, "
    size = f"input {opened.size[0]} x {opened.size[1]} px (height x width)"
    found.text(0.5, 1 - 0.22 / height, title, fontsize=13, ha="center", va="center")
    whose = f"{opened.title}, {of}, {untrained}{size}"
    found.text(0.5, 1 - 0.5 / height, whose, fontsize=10, ha="center", va="center", parse_math=False)
    made = []
    for i in range(panels):
        x = (i % columns) * (LEFT + WIDTH + RIGHT) + LEFT
        y = height - TITLE - (i // columns + 1) * (ABOVE + high + below) + below
        axis = found.add_axes((x / width, y / height, WIDTH / width, high / height), anchor="S")
        made.append(Panel(found, axis, (x / width, (y - 0.32 - BAR) / height, WIDTH / width, BAR / height)))
    return found, made


def draw_image(panel: Panel, view: View, title: str, colour: bool = True) -> None:
    """Draw an image in its own pixels, in colour or as a grey ground for an overlay."""
    height, width = view.frame.shape
    pixels = cv2.cvtColor(reduce_size(view.pixels), cv2.COLOR_BGR2RGB if colour else cv2.COLOR_BGR2GRAY)
    low, high = GROUND
    extent = (0, width, height, 0)
    panel.axis.imshow(pixels, extent=extent, cmap="gray", vmin=low, vmax=high, interpolation="bilinear")
    set_title(panel, title)


def set_title(panel: Panel, title: str) -> None:
    """Set a panel's title."""
    panel.axis.set_title(title, fontsize=10, parse_math=False)
    panel.axis.tick_params(labelsize=7)


def reduce_size(values: np.ndarray) -> np.ndarray:
    """Reduce an image to the size that is visible."""
    scale = SHOWN / max(values.shape[:2])
    if scale >= 1:
        return values
    size = max(1, round(values.shape[1] * scale)), max(1, round(values.shape[0] * scale))
    return cv2.resize(values, size, interpolation=cv2.INTER_NEAREST if np.isnan(values).any() else cv2.INTER_AREA)


def draw_heat(
    panel: Panel,
    view: View,
    values: np.ndarray,
    title: str,
    meaning: str,
    limits: tuple[float, float] = (0, 1),
    cmap: str = HEAT,
) -> None:
    """Draw (height, width) values over an image, with a colour bar; NaN shows the image."""
    height, width = view.frame.shape
    draw_image(panel, view, title, colour=False)
    style = {"cmap": cmap, "vmin": limits[0], "vmax": limits[1], "alpha": ALPHA, "interpolation": "nearest"}
    draw_colour_bar(panel, panel.axis.imshow(reduce_size(values), extent=(0, width, height, 0), **style), meaning)


def draw_colour_bar(panel: Panel, artist: Artist, meaning: str) -> None:
    """Draw a colour bar under a panel."""
    axis = panel.figure.add_axes(panel.under, facecolor="0.5")  # like the middle grey of an image under the colours
    panel.figure.colorbar(artist, cax=axis, orientation="horizontal").set_label(meaning, fontsize=8, labelpad=1)
    axis.tick_params(labelsize=7)
    if isinstance(artist.norm, LogNorm):
        return
    axis.locator_params(axis="x", nbins=6)
    axis.ticklabel_format(useOffset=False)


def draw_point(panel: Panel, point: Sequence[float], label: str = "query") -> Artist:
    """Mark a point; return its handle for a legend."""
    edge = [patheffects.withStroke(linewidth=3.5, foreground="black")]
    return panel.axis.plot(*point, "+", ms=13, mew=1.8, color="white", path_effects=edge, label=label)[0]


def draw_boxes(panel: Panel, found: Detections, names: dict[int, str], shape: tuple[int, int]) -> None:
    """Draw detections with their numbers, and list them under the panel."""
    taken: list[tuple[float, float]] = []
    for i, (box, number) in enumerate(zip(found.boxes, found.classes)):
        draw_outline(panel, box, COLOURS[number % len(COLOURS)])
        draw_tag(panel, str(i + 1), find_free_point(box, shape, taken), COLOURS[number % len(COLOURS)])
    panel.axis.set_xlabel("\n".join(list_detections(found, names)), fontsize=8, parse_math=False)


def draw_box_hints(panel: Panel, found: Detections) -> None:
    """Draw the boxes of detections thinly over a heat map."""
    for x1, y1, x2, y2 in found.boxes:
        panel.axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="white", lw=0.8))


def find_free_point(
    box: Sequence[float], shape: tuple[int, int], taken: list[tuple[float, float]]
) -> tuple[float, float]:
    """Return a point at or near a box's upper left corner where no other number is."""
    side = TAG * max(shape)
    for along, down in STEPS:
        x, y = (
            min(max(0, t), most - side) for t, most in zip((box[0] + along * side, box[1] + down * side), shape[::-1])
        )
        if all(max(abs(x - other[0]), abs(y - other[1])) > 0.99 * side for other in taken):
            break
    taken.append((x, y))
    return x, y


def draw_tag(panel: Panel, text: str, point: Sequence[float], colour: str) -> None:
    """Write a short text at a point."""
    style = {"facecolor": colour, "edgecolor": "none", "pad": 1}
    panel.axis.text(*point, text, fontsize=7, va="top", ha="left", bbox=style, clip_on=True, zorder=4)


def list_detections(found: Detections, names: dict[int, str]) -> list[str]:
    """List detections by class, in lines as wide as a panel."""
    numbered = [(names[int(c)], f"{i + 1}\u00a0({s:.2f})") for i, (c, s) in enumerate(zip(found.classes, found.scores))]
    order = sorted(numbered, key=lambda pair: pair[0])
    lines = [f"{name}: {', '.join(n for _, n in pairs)}" for name, pairs in groupby(order, key=lambda pair: pair[0])]
    return [part for line in lines for part in textwrap.wrap(line, 62)]


def draw_outline(panel: Panel, box: Sequence[float], colour: str, style: str = "-", label: str = "") -> Artist:
    """Draw a rectangle with corners x1, y1, x2, y2, visible on any ground; return its handle for a legend."""
    x1, y1, x2, y2 = box
    patch = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, lw=1.8, ls=style)
    patch.set_path_effects([patheffects.withStroke(linewidth=3.4, foreground="black")])
    panel.axis.add_patch(patch)
    return Line2D([], [], color=colour, lw=2.5, ls=style, label=label)


def draw_legend(panel: Panel, handles: list[Artist], drop: float = 0.34) -> None:
    """Draw a legend some inches under a panel."""
    high = panel.axis.get_position().height * panel.figure.get_figheight()
    place = {
        "loc": "upper center",
        "bbox_to_anchor": (0.5, -drop / high),
        "ncols": 3,
        "fontsize": 8,
        "handlelength": 2.4,
        "columnspacing": 1.2,
    }
    panel.axis.legend(handles=handles, facecolor="0.45", labelcolor="white", edgecolor="none", framealpha=1, **place)


def save_figure(figure: Figure, file: Path, small: bool = False) -> Image.Image:
    """Write a figure as a PNG file; return the picture.

    Raises:
        OSError: If the file cannot be written.
    """
    figure.savefig(buffer := io.BytesIO(), format="png")
    drawn = Image.open(buffer).convert("RGB")
    write_png(drawn, file, small)
    return drawn


def save_contact_sheet(pictures: list[Image.Image], file: Path, small: bool = False) -> None:
    """Write a sheet with all pictures, with about the proportions of a screen.

    Raises:
        OSError: If the file cannot be written.
    """
    thumbs = [p.resize((CELL, round(p.height * CELL / p.width)), Image.Resampling.LANCZOS) for p in pictures]
    area = sum((p.width + GAP) * (p.height + GAP) for p in thumbs)
    columns = min(len(thumbs), max(1, round(math.sqrt(1.6 * area) / (CELL + GAP))))
    heights, places = [GAP] * columns, []
    for thumb in thumbs:
        column = heights.index(min(heights))
        places.append((GAP + column * (CELL + GAP), heights[column]))
        heights[column] += thumb.height + GAP
    sheet = Image.new("RGB", (GAP + columns * (CELL + GAP), max(heights)), "white")
    for thumb, place in zip(thumbs, places):
        sheet.paste(thumb, place)
    write_png(sheet, file, small)


def write_png(drawn: Image.Image, file: Path, small: bool) -> None:
    """Write a PNG file at once; a small one has 256 colours."""
    if small:
        drawn = reduce_colours(drawn)
    drawn.save(buffer := io.BytesIO(), format="png", optimize=small)
    write_atomically(file, buffer.getbuffer())


def reduce_colours(drawn: Image.Image) -> Image.Image:
    """Reduce a picture to 256 colours: the most frequent ones, and those of thin marks."""
    marks = [ImageColor.getrgb(colour) for colour in (*COLOURS, "white", "black")]
    few = drawn.quantize(256 - len(marks), Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette = np.array([*np.reshape(few.getpalette(), (-1, 3)), *marks], np.int16)
    pixels, index = np.asarray(drawn, np.int16), np.array(few)
    for i in range(len(palette) - len(marks), len(palette)):
        away = np.abs(pixels - palette[i]).sum(2)
        index[(away < 48) & (away < np.abs(pixels - palette[index]).sum(2))] = i
    found = Image.fromarray(index, "P")
    found.putpalette(palette.astype(np.uint8).tobytes())
    return found
