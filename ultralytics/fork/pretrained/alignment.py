"""Load pretrained weights into a changed architecture.

Upstream copies `model.N.…` to `model.N.…`, so that one inserted row shifts all rows behind it. Here layers are aligned
by what they are: their class, their part (backbone, neck, head), the strides of their inputs and output, the shapes of
their tensors. Of all alignments that keep the order, the one that carries the most tensors is taken (the recurrence of
Needleman and Wunsch, 1970). Where no row was inserted or removed, that is upstream's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ultralytics.fork.errors import Refused
from ultralytics.fork.functional_call import call_on_meta
from ultralytics.fork.pretrained.timm_backbones import place_in
from ultralytics.fork.pretrained.transfer_report import REPORTS, list_rows, log_report, source_name
from ultralytics.utils import LOGGER

IMAGE_SIZE = 256  # pixels a side of the image whose way through a model tells the strides
# Between layers that carry as many tensors, the neighbours decide; what reads a layer tells more than what it reads
SAME_BEFORE, SAME_AFTER = 1 / 16, 1 / 8  # of a tensor


@dataclass(eq=False)
class LayerPlace:
    """A layer that holds tensors, and what identifies it: part, strides and neighbours."""

    position: int  # in the nn.Sequential, as in its keys
    layer: nn.Module
    part: str
    inputs: tuple[float, ...] | None  # strides of what it reads, if they are known
    output: float | None
    before: set[str]  # classes of the layers that it reads
    after: set[str]  # and of those that read it

    def __str__(self) -> str:
        return f"{self.layer.i} {type(self.layer).__name__}"

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """The shape of each tensor."""
        return {key: tensor.shape for key, tensor in self.layer.state_dict().items()}

    def is_compatible(self, other: LayerPlace) -> bool:
        """Whether two layers of two models are of one part and between maps of the same strides."""
        if self.part == other.part == "head":
            return True
        known = None not in (self.inputs, self.output, other.inputs, other.output)
        here, there = ((sorted(p.inputs or ()), p.output) if known else None for p in (self, other))
        return self.part == other.part and here == there


Pairs = list[tuple[LayerPlace, LayerPlace]]


class AlignedTensors(dict):
    """A source's tensors under the keys that they have in the target."""

    def __init__(self, source: nn.Module, theirs: list[LayerPlace], ours: list[LayerPlace], pairs: Pairs, same: bool):
        self.source, self.theirs, self.ours = source, theirs, ours
        self.partner = {t: s for s, t in pairs}
        self.origin = {
            f"model.{t.position}.{key}": f"model.{s.position}.{other}"
            for s, t in pairs
            for key, other in match_keys(s, t, strict=not same).items()
        }
        tensors = source.state_dict()
        super().__init__({key: tensors[other] for key, other in self.origin.items()})


class RenamedSource:
    """A source as `BaseModel.load` sees it: its state dict has the keys of the target, all else is its own."""

    def __init__(self, source: nn.Module, tensors: dict[str, torch.Tensor]):
        self._source, self._tensors = source, tensors

    def float(self) -> RenamedSource:
        """Do nothing: the tensors are of the source in fp32."""
        return self

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Give the tensors that have a place in the target."""
        return self._tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def load_aligned(load: Callable, model: nn.Module, weights: dict | nn.Module, verbose: bool = True) -> None:
    """Load weights into the layers that play their part, and report what came from where.

    Args:
        load: Upstream's `BaseModel.load`.
        model: The model to load into.
        weights: A checkpoint or a model.
        verbose: Whether to log the report.

    Raises:
        Refused: If no tensor has a place in the model.
    """
    source = (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights
    if not (has_rows(source) and has_rows(model)):
        return load(model, weights, verbose)
    source = place_in(source, model)
    found = align_tensors(source.float(), model)
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    loaded = {key for key, tensor in found.items() if shapes.get(key) == tensor.shape}
    if not loaded and found.theirs and found.ours:
        raise Refused(f"{source_name(source)}: none of its tensors has a place in this model, which stays as it is")
    load(model, RenamedSource(source, found), verbose)
    carry_eps_and_activation(model, found, loaded)
    rows = list(list_rows(found, loaded))
    # A model that is trained is a copy of the one that was loaded into: what counts is where that one came from
    REPORTS[model] = REPORTS.get(source, rows) if has_same_modules(found) else rows
    if verbose:
        log_report(rows, len(loaded), len(source.state_dict()), len(shapes))


def align_tensors(source: nn.Module, target: nn.Module) -> AlignedTensors:
    """Give a source's tensors the keys that they have in the target.

    Args:
        source: A model of upstream's kind, made of rows.
        target: The model to load into.

    Returns:
        The tensors that have a place in the target, also those of another shape there.
    """
    theirs, ours = list_places(source), list_places(target)
    pairs, same = find_best_pairs(theirs, ours), pair_same_rows(theirs, ours)
    if same and sum(score_pair(s, t) for s, t in same) >= sum(score_pair(s, t) for s, t in pairs):
        return AlignedTensors(source, theirs, ours, same, same=True)
    return AlignedTensors(source, theirs, ours, pairs, same=False)


def carry_eps_and_activation(target: Any, found: AlignedTensors, loaded: set[str]) -> None:
    """Carry what the loaded weights depend on, so that a checkpoint of the target has it, too.

    A batch norm's running variance depends on the eps that it was measured with, and the weights of a timm backbone on
    its activation.
    """
    theirs, ours = (dict(model.named_modules()) for model in (found.source, target))
    timm = [getattr(model, "timm", None) for model in (found.source, target)]
    for key in loaded:
        other = found.origin[key]
        if key.endswith(".running_var"):
            ours[parent_name(key)].eps = theirs[parent_name(other)].eps
        elif any(timm) and key.endswith(".conv.weight"):
            block, original = ours[parent_name(parent_name(key))], theirs[parent_name(parent_name(other))]
            if hasattr(block, "act") and type(block.act) is not type(original.act):
                block.act = copy.deepcopy(original.act)
    if any(timm):
        target.timm = timm[0]


def parent_name(key: str) -> str:
    """Name the module that holds a tensor or a module."""
    return key.rpartition(".")[0]


def has_rows(model: Any) -> bool:
    """Whether a model was built from the rows of a YAML."""
    layers, yaml = getattr(model, "model", None), getattr(model, "yaml", None)
    if not (isinstance(layers, nn.Sequential) and isinstance(yaml, dict) and "backbone" in yaml):
        return False
    return all(hasattr(m, "i") and hasattr(m, "f") for m in layers)


def list_places(model: Any) -> list[LayerPlace]:
    """Describe the layers of a model that hold tensors."""
    layers = list(model.model)
    stride = find_strides(model)
    reads = [list_sources(m, layers) if n else [] for n, m in enumerate(layers)]
    found = []
    for n, m in enumerate(layers):
        head = n == len(layers) - 1 and bool(model.yaml.get("head"))
        part = "backbone" if n < len(model.yaml["backbone"]) else "head" if head else "neck"
        inputs = tuple(stride[i] for i in reads[n]) if stride.keys() >= set(reads[n]) else None
        before = {type(layers[i]).__name__ for i in reads[n]}
        after = {type(m).__name__ for m, read in zip(layers, reads) if n in read}
        if m.state_dict():
            found.append(LayerPlace(n, m, part, inputs, stride.get(n), before, after))
    return found


def list_sources(m: Any, layers: list[Any]) -> list[int]:
    """Give the positions of the layers that a layer reads; all maps of a multi-output backbone are of its one layer."""
    indices = [m.i + f if f < 0 else f for f in ([m.f] if isinstance(m.f, int) else m.f)]
    return [next(n for n, layer in enumerate(layers) if layer.i >= i) for i in indices]


class HeadReached(Exception):
    """The forward pass has come to the head, which has no stride."""


def find_strides(model: Any) -> dict[int, float]:
    """Find the stride of each layer's map in pixels, by position, where the layer has one.

    The forward runs on the meta device: nothing is computed, and no weight, statistic or random state is touched.
    """
    stride: dict[int, float] = {}

    def arrive(*_: Any) -> None:
        raise HeadReached

    def record(n: int) -> Any:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            out = out[-1] if isinstance(out, (list, tuple)) and out else out
            if isinstance(out, torch.Tensor) and out.dim() == 4:
                stride[n] = IMAGE_SIZE / out.shape[-1]

        return hook

    hooks = [m.register_forward_hook(record(n)) for n, m in enumerate(model.model)]
    if model.yaml.get("head"):
        hooks.append(model.model[-1].register_forward_pre_hook(arrive))
    image = torch.empty(1, model.yaml.get("channels", 3), IMAGE_SIZE, IMAGE_SIZE, device="meta")
    try:
        call_on_meta(model, image)
    except HeadReached:
        pass
    except Exception as e:  # of a model that needs more than an image: its layers are aligned without strides
        LOGGER.debug(f"{type(model).__name__}: the strides of {len(stride)} layers are known: {e}")
    finally:
        for hook in hooks:
            hook.remove()
    return stride


def pair_same_rows(theirs: list[LayerPlace], ours: list[LayerPlace]) -> Pairs:
    """Pair the layers of equal position, if two models differ in the modules of their rows at most."""
    pairs = list(zip(theirs, ours))
    same = all(
        (s.position, s.layer.i, s.layer.f, s.part) == (t.position, t.layer.i, t.layer.f, t.part) for s, t in pairs
    )
    return pairs if same and len(theirs) == len(ours) else []


def has_same_modules(found: AlignedTensors) -> bool:
    """Whether two models have the same rows and modules."""
    pairs = pair_same_rows(found.theirs, found.ours)
    return bool(pairs) and all(type(s.layer) is type(t.layer) for s, t in pairs)


def find_best_pairs(theirs: list[LayerPlace], ours: list[LayerPlace]) -> Pairs:
    """Align two lists of layers in order, so that the most tensors are carried."""
    nothing: tuple[float, Any] = (0.0, None)
    best = [[nothing] * (len(ours) + 1) for _ in range(len(theirs) + 1)]
    for i, s in enumerate(theirs, 1):
        for j, t in enumerate(ours, 1):
            best[i][j] = max(best[i - 1][j], best[i][j - 1], key=lambda b: b[0])
            worth = score_pair(s, t)
            if worth and best[i - 1][j - 1][0] + worth > best[i][j][0]:
                best[i][j] = best[i - 1][j - 1][0] + worth, (s, t, best[i - 1][j - 1])
    pairs, link = [], best[-1][-1][1]
    while link:
        s, t, (_, link) = link
        pairs.append((s, t))
    return pairs[::-1]


def score_pair(s: LayerPlace, t: LayerPlace) -> float:
    """Count the tensors that a pair carries, and a little more where the neighbours are the same."""
    if not s.is_compatible(t):
        return 0
    carried = sum(s.shapes[other] == t.shapes[key] for key, other in match_keys(s, t).items())
    return carried and carried + SAME_BEFORE * (s.before == t.before) + SAME_AFTER * (s.after == t.after)


def match_keys(s: LayerPlace, t: LayerPlace, strict: bool = True) -> dict[str, str]:
    """Map the keys of layer `t` to those that are the same in layer `s`, whatever their shapes.

    The layers are of one class, of one derived from it or from the same one, or one holds the other.

    Args:
        s: The layer to carry from.
        t: The layer to carry into.
        strict: Whether to leave out what means nothing alone: the bias or the norm of a weight that does not fit.
    """
    if is_related(s.layer, t.layer):
        keys = {key: key for key in common_keys(s.layer, t.layer, strict)}
        return match_by_stride(keys, s, t, strict) if s.part == t.part == "head" else keys
    found = [
        {f"{to}.{key}": key for key in common_keys(s.layer, m, strict)}
        for to, m in find_modules_of_class(t.layer, s.layer)
    ]
    found += [
        {key: f"{at}.{key}" for key in common_keys(m, t.layer, strict)}
        for at, m in find_modules_of_class(s.layer, t.layer)
    ]
    return max(found, key=lambda keys: sum(s.shapes[o] == t.shapes[k] for k, o in keys.items()), default={})


def is_related(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules are of one class, one derived from the other, or both from one that is not torch's."""
    bases = {base for base in type(one).__mro__ if not base.__module__.startswith(("torch", "builtins"))}
    return isinstance(one, type(other)) or isinstance(other, type(one)) or not bases.isdisjoint(type(other).__mro__)


def find_modules_of_class(holder: nn.Module, sought: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Find the modules of a class within another; of a block's class, as a lone layer's is found in everything."""
    if sum(p.dim() > 1 for p in sought.parameters()) < 2:
        return iter(())
    return ((name, m) for name, m in holder.named_modules() if type(m) is type(sought))


def common_keys(source: nn.Module, target: nn.Module, strict: bool) -> Iterator[str]:
    """Give the keys that two modules share, down to where their classes part."""
    own = any(not type(m).__module__.startswith(("torch.", "ultralytics.nn.modules.")) for m in (source, target))
    if (strict or own) and not is_related(source, target):  # upstream does not ask its own blocks in equal rows
        return
    theirs, ours = list_own_shapes(source), list_own_shapes(target)
    is_alone = strict and theirs.get("weight") != ours.get("weight")  # a bias means nothing without its weight
    yield from (key for key in ours if key in theirs and not (is_alone and ours[key] == theirs[key]))
    has_weight = True  # whether the convolution before a norm has come
    for name, child in target.named_children():
        other = source._modules.get(name)
        if other is None or (strict and isinstance(child, _BatchNorm) and not has_weight):
            continue
        yield from (f"{name}.{key}" for key in common_keys(other, child, strict))
        if "weight" in list_own_shapes(child) and not isinstance(child, _BatchNorm):
            has_weight = list_own_shapes(other).get("weight") == list_own_shapes(child)["weight"]


def list_own_shapes(m: nn.Module) -> dict[str, torch.Size]:
    """Give the shapes of the tensors that a module itself puts into the state dict."""
    tensors = {**m._parameters, **m._buffers}
    return {k: t.shape for k, t in tensors.items() if t is not None and k not in m._non_persistent_buffers_set}


def match_by_stride(keys: dict[str, str], s: LayerPlace, t: LayerPlace, strict: bool) -> dict[str, str]:
    """Match what a head has for each of its maps by the stride of the map, not by its place in the list."""
    if s.inputs is None or t.inputs is None or s.inputs == t.inputs:
        return keys
    for name, ours in t.layer.named_children():
        theirs = s.layer._modules.get(name)
        if not (isinstance(ours, nn.ModuleList) and isinstance(theirs, nn.ModuleList)):
            continue
        # RT-DETR's lists called `dec_…` have an entry a decoder layer
        if name.startswith("dec_") or (len(theirs), len(ours)) != (len(s.inputs), len(t.inputs)):
            continue
        keys = {key: other for key, other in keys.items() if not key.startswith(f"{name}.")}
        for j, stride in enumerate(t.inputs):
            if stride in s.inputs:
                i = s.inputs.index(stride)
                keys.update({f"{name}.{j}.{k}": f"{name}.{i}.{k}" for k in common_keys(theirs[i], ours[j], strict)})
    return keys
