"""Images, and the place of their pixels in a network's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from _explain.network import OpenedModel
from ultralytics.data.augment import LetterBox
from ultralytics.fork.errors import Refused
from ultralytics.models.rtdetr.predict import RTDETRPredictor
from ultralytics.utils.patches import imread

PILLOWS = ".bmp", ".jpeg", ".jpg", ".png", ".webp"  # formats that Pillow can check


class Frame:
    """The place of an image in a network's input. All points are (x, y), with the origin in the upper left corner.

    Args:
        shape: Height and width of the image in pixels.
        letterbox: What resizes and pads images.

    Attributes:
        shape: As given.
        size: Height and width of the input in pixels.
        top, left, height, width: The image's place in the input; what is around it is padding.
    """

    def __init__(self, shape: tuple[int, int], letterbox: LetterBox):
        found = letterbox.get_params({"img": np.broadcast_to(np.uint8(0), (*shape, 3))})
        self.shape, self.top, self.left = shape, found["top"], found["left"]
        self.width, self.height = found["new_unpad"]
        self.size = self.top + self.height + found["bottom"], self.left + self.width + found["right"]

    @property
    def scale(self) -> np.ndarray:
        """Pixels of the input for one pixel of the image, along x and y."""
        return np.array([self.width / self.shape[1], self.height / self.shape[0]])

    def to_input(self, points: Sequence) -> np.ndarray:
        """Convert (..., 2) points of the image to the input."""
        return np.asarray(points, float) * self.scale + (self.left, self.top)

    def to_image(self, points: Sequence) -> np.ndarray:
        """Convert (..., 2) points of the input to the image; points in the padding move to its edge."""
        found = (np.asarray(points, float) - (self.left, self.top)) / self.scale
        return found.clip(0, (self.shape[1], self.shape[0]))

    def position(self, point: Sequence[float], size: tuple[int, int]) -> tuple[int, int]:
        """Return row and column of the position of a map of (H, W) at a point of the image."""
        x, y = self.to_input(point) / self.size[::-1]
        return min(int(y * size[0]), size[0] - 1), min(int(x * size[1]), size[1] - 1)

    def corners(self, size: tuple[int, int], cells: np.ndarray) -> np.ndarray:
        """Convert (..., 2) corners of a map's cells, columns and rows from 0 to (W, H), to the image."""
        return self.to_image(np.asarray(cells, float) / size[::-1] * self.size[::-1])

    def on_image(self, values: np.ndarray, smooth: bool = True) -> np.ndarray:
        """Resize the values of a map to the image.

        Args:
            values: (H, W) values of a grid over the whole input.
            smooth: Interpolate between them; else each cell is of one value, as NaN must be.

        Returns:
            Values for each pixel of the image; those of the padding are cut away.
        """
        how = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
        whole = resize_values(values.astype(np.float32), self.size, how)
        place = whole[self.top : self.top + self.height, self.left : self.left + self.width]
        return resize_values(place, self.shape, how)


@dataclass(frozen=True)
class View:
    """An image, and the network's input that is made of it.

    Attributes:
        name: The stem of its file.
        pixels: (height, width, 3) bytes, BGR.
        x: The network's input, (1, 3, H, W), RGB from 0 to 1.
        frame: The place of the image in the input.
    """

    name: str
    pixels: np.ndarray
    x: torch.Tensor
    frame: Frame

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the image in pixels, (x, y)."""
        height, width = self.frame.shape
        return width / 2, height / 2


def load_view(image: str | Path | np.ndarray | View, opened: OpenedModel) -> View:
    """Prepare an image for a network as `yolo predict` does; for RT-DETR it is stretched to the input's size.

    Args:
        image: A file, or (height, width, 3) bytes, BGR.
        opened: The network.

    Raises:
        ValueError: If the file is not a complete image.
        OSError: If it cannot be read.
    """
    if isinstance(image, View):
        return image
    name, pixels = ("image", image) if isinstance(image, np.ndarray) else (Path(image).stem, read_image(Path(image)))
    letterbox = LetterBox(opened.size, scale_fill=RTDETRPredictor.scale_fill)
    weight = next(opened.net.parameters())
    seen = np.ascontiguousarray(letterbox(image=pixels)[..., ::-1].transpose(2, 0, 1))  # (3, H, W), RGB
    with torch.inference_mode(False):  # else it could have no gradient
        x = torch.from_numpy(seen)[None].to(weight.device, weight.dtype) / 255
    return View(name, pixels, x, Frame(pixels.shape[:2], letterbox))


def read_image(file: Path) -> np.ndarray:
    """Read an image as upstream does: (height, width, 3) bytes, BGR.

    Raises:
        ValueError: If it is not an image, or is truncated.
        OSError: If it cannot be read.
    """
    if file.is_dir():
        raise Refused(f"{file} is a folder; expected an image")
    if not file.exists():
        raise Refused(f"{file} does not exist")
    with open(file, "rb") as f:  # raises the reason, which upstream's reader hides
        f.read(1)
    pixels = imread(file)
    if pixels is None or pixels.ndim != 3:
        raise Refused(f"{file} is not an image that OpenCV can read, or is damaged")
    if file.suffix.lower() in PILLOWS:
        check_complete(file)
    return pixels


def check_complete(file: Path) -> None:
    """Raise a `ValueError` for a truncated image, of which some releases of OpenCV return a part."""
    try:
        with Image.open(file) as image:
            image.load()
    except (UnidentifiedImageError, ImportError, Image.DecompressionBombError):  # Pillow cannot judge it
        pass
    except (OSError, SyntaxError, ValueError) as e:
        raise Refused(f"{file} is damaged or cut: {e}") from e


def resize_values(values: np.ndarray, size: tuple[int, int], how: int) -> np.ndarray:
    """Resize (h, w) values to (height, width)."""
    return values if values.shape == tuple(size) else cv2.resize(values, size[::-1], interpolation=how)
