"""Open an RT-DETR to inspect it: its rows, their maps with or without gradients, and its detections."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ultralytics import YOLO
from ultralytics.engine.model import Model
from ultralytics.fork.errors import Refused
from ultralytics.fork.export.integrity import explain_runtime_error
from ultralytics.fork.rtdetr import find_head, unwrap_model
from ultralytics.utils import SETTINGS
from ultralytics.utils.checks import check_imgsz

YAMLS = ".yaml", ".yml"
SIZE = 640  # pixels, if the size of the training is unknown
CACHES = "shapes", "anchors", "valid_mask"  # attributes in which RT-DETR's head caches anchors


@dataclass(frozen=True)
class OpenedModel:
    """A network to inspect.

    Attributes:
        net: The network, an RT-DETR's.
        name: The stem of its file.
        size: Height and width of its input in pixels.
        trained: Whether its weights come from a checkpoint.
    """

    net: nn.Module
    name: str
    size: tuple[int, int]
    trained: bool

    @property
    def title(self) -> str:
        """The model's name in a picture, with its YAML's, as a checkpoint's name such as best says little."""
        file = Path(getattr(self.net, "yaml", {}).get("yaml_file", "")).stem
        return self.name if file in ("", self.name) else f"{self.name} ({file})"

    @property
    def classes(self) -> dict[int, str]:
        """The names of the classes."""
        return self.net.names


@dataclass(frozen=True)
class Source:
    """The origin of a map.

    Attributes:
        layer: Its index, as later rows' `from` names it.
        row: The row that gives it, as the model's summary numbers it: another number behind a multi-output backbone.
        output: Which of the row's outputs it is; None where the row has one only.
        module: The row's module.
    """

    layer: int
    row: int
    output: int | None
    module: str

    @property
    def label(self) -> str:
        """The row's name in a picture."""
        return f"row {self.row} {self.module}" + (f" (layer {self.layer})" if self.layer != self.row else "")


def open_model(
    model: str | Path | Model | nn.Module | OpenedModel, imgsz: int | Sequence[int] | None = None
) -> OpenedModel:
    """Open a model; an open one is returned as it is.

    Args:
        model: A checkpoint, a model file, or what was made of one.
        imgsz: Side of the input, or its height and width, in pixels; None for what the model was trained with.

    Raises:
        ValueError: If it is not an RT-DETR, or not a PyTorch network.
        OSError: If the file cannot be read.
    """
    if isinstance(model, OpenedModel):
        return (
            model if imgsz is None else OpenedModel(model.net, model.name, input_size(model.net, imgsz), model.trained)
        )
    name, trained = "model", True
    if isinstance(model, (str, Path)):
        name, trained = Path(model).stem, Path(model).suffix not in YAMLS
        model = open_file(model)
    if isinstance(model, Model):
        name, trained = Path(str(model.model_name or name)).stem, bool(model.ckpt) and trained
        model = model.model
    net = unwrap_model(model) if isinstance(model, nn.Module) else model
    if not isinstance(net, nn.Module):
        raise needs_network(model)
    if find_head(net) is None:
        head = type(getattr(net, "model", [net])[-1]).__name__
        raise Refused(f"{name} is not an RT-DETR: its head is {head}, and these pictures are of an RT-DETR")
    if (channels := getattr(net, "yaml", {}).get("channels", 3)) != 3:
        raise Refused(f"{name} takes images of {channels} channels; these pictures are of colour images, of 3")
    return OpenedModel(net, name, input_size(net, imgsz), trained)


def open_file(model: str | Path) -> Model:
    """Open a checkpoint or a model file."""
    file = Path(model)
    if file.suffix in YAMLS:
        return build_yaml(str(model))
    if file.suffix != ".pt":
        raise needs_network(model)
    if not file.exists() and file.name == str(model):
        file = Path(SETTINGS["weights_dir"]) / file  # where upstream searches next
    if not file.is_file():
        raise Refused(f"{model} does not exist")
    try:
        return YOLO(str(file))
    except OSError:
        raise
    except Exception as e:  # a file that is not upstream's may raise anything
        if getattr(e, "plain", False):
            raise
        raise explain_runtime_error(file, e) from e


def build_yaml(model: str) -> Model:
    """Build the model of a model file."""
    try:
        return YOLO(model)
    except OSError:
        raise
    except Exception as e:  # a module's constructor may raise anything
        line = " ".join(str(e).split())
        raise Refused(line if model in line else f"{model} cannot be built ({type(e).__name__}: {line})") from e


def needs_network(model: Any) -> ValueError:
    """Build the error for a model without layers to inspect."""
    return Refused(
        f"{model}: explanations need a model's layers and gradients, which an exported model does not have; "
        "name the checkpoint (.pt) or a model file (.yaml)"
    )


def input_size(net: nn.Module, imgsz: int | Sequence[int] | None) -> tuple[int, int]:
    """Return height and width of the input in pixels, multiples of the largest stride as in `yolo predict`."""
    args = getattr(net, "args", {})
    imgsz = imgsz or (args if isinstance(args, dict) else vars(args)).get("imgsz") or SIZE
    sides = [imgsz] if isinstance(imgsz, int) else list(imgsz)
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise Refused(f"imgsz={imgsz}: expected one side in pixels, or height and width")
    height, width = check_imgsz(sides, stride=net.stride, min_dim=2)
    return height, width


@contextlib.contextmanager
def prepare_gradients(net: nn.Module) -> Iterator[None]:
    """Let gradients flow through a network in eval mode, and restore the network at the end.

    The weights get no gradients: the graph holds only what follows the inspected rows. The head builds its anchors
    again, as those of an earlier prediction may be tensors without a graph.
    """
    head = find_head(net)[1]
    training = {m: m.training for m in net.modules()}
    needed = {p: p.requires_grad for p in net.parameters()}
    kept = {name: vars(head)[name] for name in CACHES if name in vars(head)}
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm)]
    handles = [m.register_forward_hook(make_gradient_contiguous) for m in norms]
    net.eval().requires_grad_(False)
    head.shapes = []
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for m, was in training.items():
            m.training = was
        for p, was in needed.items():
            p.requires_grad_(was)
        for name in CACHES:
            vars(head).pop(name, None)
        vars(head).update(kept)


def make_gradient_contiguous(m: nn.Module, _: tuple, out: torch.Tensor) -> None:
    """Make the gradient at a batch norm's output contiguous in memory.

    On a CPU, torch's batch norm (seen in 2.15) computes a wrong gradient for one image if the incoming gradient is
    transposed, as that of the decoder's inputs is: it reads the values in another order.
    """
    if out.requires_grad:
        out.register_hook(torch.Tensor.contiguous)


def list_sources(net: nn.Module) -> dict[int, Source]:
    """List the maps that rows before the head output, by layer index; a multi-output backbone has several."""
    found, last = {}, -1
    for row, m in enumerate(net.model[:-1]):
        indices = [m.i] if m.i == last + 1 else range(last + 2, m.i + 1)  # the first index of several stays empty
        for output, layer in enumerate(indices):
            found[layer] = Source(layer, row, None if len(indices) == 1 else output, module_name(m))
        last = m.i
    return found


def module_name(m: nn.Module) -> str:
    """Return a row's module as the model file names it, also if the row is repeated."""
    return str(getattr(m, "type", type(m).__name__)).rpartition(".")[2]


def choose_sources(net: nn.Module, rows: Sequence[int] | None = None) -> list[Source]:
    """Return the maps of some rows, by default the decoder's inputs.

    Args:
        net: The network.
        rows: Rows as the model's summary numbers them; a multi-output backbone's gives all its maps.

    Raises:
        ValueError: If a number is not that of a row before the head.
    """
    found, head = list_sources(net), net.model[-1]
    if rows is None:
        return [found[layer % head.i] for layer in head.f]
    count = len(net.model) - 1
    for row in rows:
        if not 0 <= row < count:
            raise Refused(f"layer {row}: expected a row from 0 to {count - 1}, as the model's summary numbers them")
    return [source for row in dict.fromkeys(rows) for source in found.values() if source.row == row]


@contextlib.contextmanager
def record_maps(net: nn.Module, wanted: list[Source]) -> Iterator[list[torch.Tensor]]:
    """Record maps while a network runs, with the graph of what follows the first of their rows.

    If the image needs a gradient, the graph begins there.

    Yields:
        A list that holds a (B, C, H, W) map for each source after the run, the tensors that later rows get.

    Raises:
        ValueError: If a row's output is not a single map.
    """
    maps: list[torch.Tensor | None] = [None] * len(wanted)

    def begin(m: nn.Module, inputs: tuple) -> tuple:
        several = isinstance(inputs[0], (list, tuple))
        starts = [x if x.requires_grad else x.detach().requires_grad_() for x in (inputs[0] if several else inputs)]
        return (starts,) if several else tuple(starts)

    def keep(m: nn.Module, _: Any, outputs: Any) -> None:
        for i, source in enumerate(wanted):
            if net.model[source.row] is m:
                maps[i] = outputs if source.output is None else outputs[source.output]
                if not isinstance(maps[i], torch.Tensor) or maps[i].ndim != 4:
                    raise Refused(f"layer {source.row}: {source.module} gives no single feature map")

    rows = sorted({source.row for source in wanted})
    handles = [net.model[rows[0]].register_forward_pre_hook(begin)]
    handles += [net.model[row].register_forward_hook(keep) for row in rows]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def run_detection(net: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the network on an image and return the detections of the decoder's last layer.

    Args:
        net: The network.
        x: The image, (1, 3, H, W), from 0 to 1.

    Returns:
        Boxes (queries, 4), centre and size as shares of the input's sides, and logits (queries, classes), of the
        decoder's last layer.

    Raises:
        ValueError: If a module does not take maps of this size, or scores are not finite.
    """
    try:
        _, (boxes, logits, *_) = net(x)
    except ValueError as e:
        raise Refused(f"the model does not take an input of {x.shape[2]} x {x.shape[3]} px: {e}") from e
    if not torch.isfinite(logits).all():
        raise Refused("the model's scores are not finite: there is nothing to explain; are its weights whole?")
    return boxes[-1, 0], logits[-1, 0]
