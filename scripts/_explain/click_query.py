"""A window in which the user clicks on a point of an image."""

from __future__ import annotations

import cv2

from _explain.image_view import View
from ultralytics.fork.errors import Refused

BACKENDS = "macosx", "qtagg", "gtk4agg", "gtk3agg", "tkagg", "wxagg"


def ask_for_click(view: View) -> tuple[float, float]:
    """Show an image and return the point that the user clicks, (x, y) in pixels.

    Raises:
        ValueError: If no window can be opened, or it is closed without a click.
    """
    from matplotlib import pyplot as plt

    for backend in BACKENDS:
        try:
            plt.switch_backend(backend)
            break
        except ImportError:  # the toolkit is not installed, or there is no display
            continue
    else:
        raise Refused("--click needs a display and a toolkit for windows (such as Tk); name the point with --query X,Y")
    figure, axis = plt.subplots(figsize=(9, 7), layout="constrained")
    axis.imshow(cv2.cvtColor(view.pixels, cv2.COLOR_BGR2RGB))
    axis.set_title(f"{view.name}: click on the query")
    points = plt.ginput(1, timeout=0)
    plt.close(figure)
    if not points:
        raise Refused(f"--click: the window of {view.name} was closed without a click")
    height, width = view.frame.shape
    (x, y) = points[0]  # whole numbers are the centres of pixels
    return min(max(0.0, x + 0.5), width - 1), min(max(0.0, y + 0.5), height - 1)
