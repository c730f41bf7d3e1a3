"""Timm: any image backbone of the library timm as the multi-output backbone of row 0.

Library: https://github.com/huggingface/pytorch-image-models (PyTorch Image Models, R. Wightman)
Pyramid of a backbone of one stride: "Exploring Plain Vision Transformer Backbones for Object Detection" (ViTDet),
ECCV 2022, https://arxiv.org/abs/2203.16527, section 3, the simple feature pyramid.

The row `[-1, 1, Timm, [convnextv2_nano]]` gives maps of strides 4, 8, 16 and 32, the layers 1 to 4 of later rows:

    maps = pyramid(features(resize((image - mean) / std)))

Channels and strides are those of timm's `feature_info`. Only what later rows read is built:

- a stride that the backbone lacks below its finest map is that map through one 2x2 transposed convolution for each
  factor of two, which halves the channels; one above its coarsest map is that map through 3x3 convolutions of stride 2
- a backbone of another stride, such as a patch of 14 pixels, gets an image that is resized by 14 / 16
- a backbone that is built for one size is built for `img_size`, or if it takes squares only, for the longer side; if it
  has a size of its own only, the image is resized to that. Its maps are resized to the strides
- maps of valid convolutions, which are a few pixels smaller than the stride says, are resized
- parameters that serve none of the maps, such as those of a last class token, are buffers
- `mean` and `std` are those of pretrained weights, and 0 and 1 without such. They are buffers, so that they go with the
  weights into checkpoints, transfers and exported graphs
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ultralytics.fork.building.memory_limit import ModelTooLarge, count_apart
from ultralytics.fork.errors import Refused
from ultralytics.fork.functional_call import call_on_meta, find_idle_parameters
from ultralytics.nn.AddModules.layers.execution_mode import is_eager, map_size
from ultralytics.nn.AddModules.layers.fold_norms import fold_norms
from ultralytics.nn.AddModules.registry import RowError, backbone, register

__all__ = ("Timm",)

STRIDES = 4, 8, 16, 32
TRIED_BATCH = 2  # images of the trial, of which a batch norm can take the variance
# Arguments of timm.create_model that this module sets, or that would open files
RESERVED = {
    *("cache_dir", "checkpoint_path", "exportable", "feature_cfg", "feature_cls", "features_only", "global_pool"),
    *("in_chans", "kwargs_filter", "model_cfg", "no_jit", "num_classes", "out_indices", "pretrained_cfg"),
    *("pretrained_cfg_overlay", "pretrained_filter_fn", "pretrained_model_args", "pretrained_strict", "pruned"),
    "scriptable",
}


@register(backbone)
class Timm(nn.Module):
    """A backbone of timm whose maps later rows read by their strides.

    Args:
        name: Of the model in timm, with or without the tag of its weights; see `timm.list_models()`.
        pretrained: True for the weights of the name, a tag of the model, or a file of its weights.
            A model that is built for other weights, such as those of a checkpoint, does not load them.
        dim_in: Channels of the image.
        img_size: Pixels of the image, one number or [height, width]. It matters to backbones of a fixed size only.
        strides: Of the maps that are read; the others are not built.
        options: Of the model, such as `drop_path_rate`.

    Attributes:
        width_list: Channels of the maps of strides 4, 8, 16 and 32; 0 for one that is not built.

    Shapes:
        Input (B, dim_in, H, W), H and W multiples of 32; output four maps (B, width_list[i], H / 2^(i + 2),
        W / 2^(i + 2)), None for one that is not built.

    Raises:
        RowError: For a name or an option that timm does not know, or a model that gives no maps.
        Refused: In forward, for a backbone of a fixed size and an image of another.
    """

    features: Any  # timm's feature extractor
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        name: str,
        pretrained: bool | str = False,
        dim_in: int = 3,
        img_size: int | Sequence[int] = 640,
        strides: Sequence[int] = STRIDES,
        **options: Any,
    ):
        super().__init__()
        refuse_unknown(name, options)
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if len(size) != 2 or any(not isinstance(side, int) or side < 32 or side % 32 for side in size):
            raise RowError(f"Timm: img_size={img_size!r}; expected a multiple of 32, or [height, width] of such")
        weights: dict[str, Any] = {}
        if pretrained:
            from ultralytics.fork.pretrained.timm_weights import find_weights

            name, weights = find_weights(name, pretrained)
        self.name, self.pretrained = name, bool(pretrained)
        self.options = {"img_size": img_size, **options}
        builder = FeatureBuilder(name, {"in_chans": dim_in, **options}, weights, size)
        self.features, self.places = builder.build(strides)
        self.image_size, self.fixed_size, self.scale = builder.image_size, builder.fixed_size, builder.scale
        self.is_nhwc, self.resizes = builder.is_nhwc, builder.resizes
        self.kept_inputs = [n for n, m in self.features.named_modules() if getattr(m, "inplace", None) is False]
        self.set_normalisation(dim_in, bool(weights))
        self.build_pyramid(strides)
        self.hold_idle_parameters(self.fixed_size or size)

    def set_normalisation(self, channels: int, pretrained: bool) -> None:
        """Register the mean and the deviation that pretrained weights expect of each of the image's channels."""
        config = vars(self.features).pop("pretrained_cfg")
        vars(self.features).pop("default_cfg", None)
        for key, neutral in (("mean", 0.0), ("std", 1.0)):
            numbers = list(config[key]) if pretrained else [neutral] * 3
            if channels != 3:  # timm gives each channel a share of the weights of red, green and blue
                numbers = [sum(numbers) / 3] * channels
            self.register_buffer(key, torch.tensor(numbers).view(1, -1, 1, 1))

    def build_pyramid(self, strides: Sequence[int]) -> None:
        """Build what makes the strides that the backbone lacks, and note the channels of each map."""
        channels = self.features.feature_info.channels()
        native = {stride: channels[place] for stride, place in self.places.items()}
        self.finer, self.coarser = nn.ModuleDict(), nn.ModuleDict()
        width = dict(native)
        for stride in sorted(set(strides) - set(native), reverse=True):  # finer ones from the finest map
            if stride < min(native):
                steps = int(math.log2(min(native) / stride))
                self.finer[str(stride)] = make_finer(native[min(native)], steps)
                width[stride] = native[min(native)] >> steps
        for stride in sorted(set(STRIDES) - set(native)):
            if min(native) < stride <= max(strides):
                width[stride] = width[stride // 2]
                self.coarser[str(stride)] = make_coarser(width[stride])
        self.strides = tuple(strides)
        self.width_list = [width[stride] if stride in strides else 0 for stride in STRIDES]

    def hold_idle_parameters(self, size: tuple[int, int]) -> None:
        """Turn parameters that the maps do not depend on into buffers, so that each parameter gets a gradient.

        Such are the parts of a last block that serve a class token. Training in many processes waits for gradients.
        """
        image = torch.empty(TRIED_BATCH, self.mean.shape[1], *size, device="meta")
        try:
            with count_apart():
                idle = find_idle_parameters(self, image)
        except ModelTooLarge:
            raise
        except Exception:  # of an operation without a gradient on the meta device
            return
        for name in idle:
            path, _, key = name.rpartition(".")
            holder = self.get_submodule(path)
            held = getattr(holder, key).detach()
            delattr(holder, key)
            holder.register_buffer(key, held)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor | None]:
        """Return the maps of strides 4, 8, 16 and 32, None where a map is not built."""
        H, W = map_size(x)
        if self.fixed_size and is_eager() and self.fixed_size != (H, W):
            height, width = self.fixed_size
            raise Refused(
                f"timm's {self.name} is built for images of {height}x{width} pixels, and this one has {H}x{W}. Give "
                f"imgsz={max(height, width)}, or build it for the other size: {{img_size: [{H}, {W}]}} behind its name"
            )
        x = (x - self.mean) / self.std
        if self.image_size:
            x = F.interpolate(x, self.image_size, mode="bilinear")
        elif self.scale != 1:
            x = F.interpolate(x, scale_factor=self.scale, mode="bilinear")
        native = self.features(x)
        maps = {}
        for stride, place in self.places.items():
            x = native[place].permute(0, 3, 1, 2) if self.is_nhwc else native[place]
            maps[stride] = F.interpolate(x, (H // stride, W // stride), mode="bilinear") if self.resizes else x
        finest = maps[min(maps)]
        for stride in STRIDES:
            if str(stride) in self.finer:
                maps[stride] = self.finer[str(stride)](finest)
            elif str(stride) in self.coarser:
                maps[stride] = self.coarser[str(stride)](maps[stride // 2])
        return [maps.get(stride) if stride in self.strides else None for stride in STRIDES]

    def fuse(self) -> None:
        """Fold batch norms into the convolutions before them, for inference."""
        height, width = self.fixed_size or (128, 128)
        generator = torch.Generator().manual_seed(0)  # the program's random state stays what it is
        image = torch.rand(1, self.mean.shape[1], height, width, generator=generator)
        was_training = self.training
        fold_norms(self.eval(), image.to(self.mean))
        self.train(was_training)

    def keep_inputs(self) -> None:
        """Let layers that must not write over their input not do so: upstream lets all, when it opens a checkpoint."""
        layers = dict(self.features.named_modules())
        for name in self.kept_inputs:
            if name in layers:  # a folded norm may have left its place
                layers[name].inplace = False

    def set_image_size(self, height: int, width: int) -> None:
        """Resample position embeddings for one size, for an export that is of that size only.

        Else they are resampled for each image, by operations that few runtimes have.
        """
        model: Any = getattr(self.features, "model", None)
        if hasattr(model, "set_input_size") and not (self.fixed_size or self.image_size):
            model.set_input_size(img_size=scale_size((height, width), self.scale))

    def extra_repr(self) -> str:
        """Show the name and the strides."""
        return f"{self.name}, strides={self.strides}"


class FeatureBuilder:
    """Builds the feature extractor of a timm model in the first way in which it takes images of a size.

    Args:
        name: Of the model.
        options: Of the model.
        weights: Options that load weights.
        size: Of the images.

    Attributes:
        way: The options by which it takes the size.
        image_size: The size that each image is resized to; None for its own.
        fixed_size: The only size that images may have; None for any multiple of 32.
        scale: What each image is scaled by, so that the strides are powers of two.
        is_nhwc: Whether the maps are (B, H, W, C).
        resizes: Whether the maps are of other sizes than their strides say, so that they must be resized.
    """

    def __init__(self, name: str, options: dict[str, Any], weights: dict[str, Any], size: tuple[int, int]):
        self.name, self.options, self.weights, self.size = name, options, weights, size
        self.way: dict[str, Any] = {}
        self.image_size: tuple[int, int] | None = None
        self.fixed_size: tuple[int, int] | None = None
        self.scale = 1.0
        self.is_nhwc = self.resizes = False

    def build(self, strides: Sequence[int]) -> tuple[Any, dict[int, int]]:
        """Build it with the maps that are needed for some strides.

        Returns:
            The feature extractor, and by stride the place of a map in its outputs.

        Raises:
            RowError: If it takes images of no size, or has no map of such strides.
        """
        info = self.choose_way()
        places = choose_maps(info.reduction(), strides)
        deepest = max(places.values()) + 1  # the stages behind it are not read
        trimmed = {"out_indices": tuple(info.out_indices[:deepest])} if deepest < len(info.channels()) else {}
        return self.create(**self.way, **trimmed, **self.weights), places

    def choose_way(self) -> Any:
        """Try the ways on the meta device, where only shapes are computed; give the information of the maps."""
        features = self.create_for_trial()
        config, info = features.pretrained_cfg, features.feature_info
        self.scale = info.reduction()[-1] / 2 ** round(math.log2(info.reduction()[-1]))
        size, other = scale_size(self.size, self.scale), scale_size((self.size[0] + 32, self.size[1]), self.scale)
        if not config.get("fixed_input_size") and self.takes(features, size):
            return info
        for way in {"dynamic_img_size": True, "img_size": size}, {"dynamic_img_size": True}, {"img_size": size}:
            found = self.try_way(way, size)
            if found:
                self.fixed_size = None if self.takes(found, other) else self.size
                return found.feature_info
        square = (max(size), max(size))
        found = self.try_way({"img_size": square}, square) if size != square else None
        if found:
            self.image_size = square
            return found.feature_info
        self.scale, own = 1.0, tuple(config["input_size"][-2:])  # its maps are resized, whatever their strides
        for size in (self.size, tuple(math.ceil(side / unit) * unit for side, unit in zip(self.size, own)), own):
            if self.takes(features, size):
                self.image_size = size if size != self.size else None
                return info
        raise RowError(f"Timm: {self.name} takes images of neither {self.size} nor {own} pixels")

    def try_way(self, way: dict[str, Any], size: tuple[int, int]) -> Any:
        """Try options; give the feature extractor and note them, if it takes images of a size with them."""
        try:
            found = self.create_for_trial(**way)
        except (TypeError, RowError):  # no argument of this model, or a value that it does not take
            return None
        if not self.takes(found, size):
            return None
        self.way = way
        return found

    def create_for_trial(self, **way: Any) -> Any:
        """Create the feature extractor without numbers, or where it needs them, without pretrained ones."""
        with count_apart():
            try:
                with torch.device("meta"):
                    return self.create(**way)
            except (NotImplementedError, RuntimeError):
                return self.create(**way)

    def create(self, **way: Any) -> Any:
        """Create the feature extractor."""
        import timm  # its import takes longer than that of ultralytics

        options = {"features_only": True, **way, **self.options}
        try:
            features = timm.create_model(self.name, **options)
            if type(features).__name__ == "FeatureHookNet":  # whose hooks a checkpoint cannot hold
                features = timm.create_model(self.name, feature_cls="getter", **options)
            return features
        except TypeError as e:
            if set(way) & set(str(e).split("'")):
                raise
            raise RowError(f"Timm: {self.name}: {e}") from None
        except (AttributeError, AssertionError, RuntimeError) as e:
            if isinstance(e, RuntimeError) and "features_only" not in str(e):
                raise
            raise RowError(f"Timm: {self.name} gives no maps: {' '.join(str(e).split())[:200]}") from None

    def takes(self, features: Any, size: tuple[int, int]) -> bool:
        """Whether a feature extractor takes images of a size; note how its maps come."""
        image = torch.empty(TRIED_BATCH, self.options["in_chans"], *size, device="meta")
        features.train()  # some keep tables of the sizes that they have seen in evaluation mode
        try:
            with torch.no_grad(), count_apart():
                maps = call_on_meta(features, image)
        except ModelTooLarge:
            raise
        except Exception:  # a model's own, of any kind
            return False
        info = features.feature_info
        channels, strides = info.channels(), [2 ** round(math.log2(r)) for r in info.reduction()]
        self.is_nhwc = any(m.shape[1] != c and m.shape[3] == c for m, c in zip(maps, channels))
        axes = slice(1, 3) if self.is_nhwc else slice(2, 4)
        expected = [(self.size[0] // stride, self.size[1] // stride) for stride in strides]
        self.resizes = any(tuple(m.shape[axes]) != sides for m, sides in zip(maps, expected))
        return True


def choose_maps(reductions: Sequence[int], strides: Sequence[int]) -> dict[int, int]:
    """Choose the deepest map of each stride up to the coarsest that is read; by stride, its place in the outputs."""
    places = {2 ** round(math.log2(r)): place for place, r in enumerate(reductions)}
    found = {stride: place for stride, place in places.items() if stride in STRIDES}
    if not found:
        raise RowError(f"Timm: the maps have strides {', '.join(map(str, places))}; expected one of 4, 8, 16, 32")
    return {s: place for s, place in found.items() if s <= max(*strides, min(found))}


def scale_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Scale a size in pixels."""
    return round(size[0] * scale), round(size[1] * scale)


def make_finer(channels: int, steps: int) -> nn.Sequential:
    """Build 2x2 transposed convolutions, each of which doubles the sides of a map and halves its channels."""
    layers: list[nn.Module] = []
    for step in range(steps):
        if step:
            layers += [nn.BatchNorm2d(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, 2))
        channels //= 2
    return nn.Sequential(*layers)


def make_coarser(channels: int) -> nn.Sequential:
    """Build a 3x3 convolution of stride 2, which keeps the channels."""
    return nn.Sequential(nn.Conv2d(channels, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels))


def refuse_unknown(name: Any, options: dict[str, Any]) -> None:
    """Raise a `RowError` for a name that timm does not have, or an option that a row may not give."""
    import timm

    if not isinstance(name, str) or not timm.is_model(name.partition(".")[0]) or "/" in name or ":" in name:
        known = timm.list_models()
        near = difflib.get_close_matches(str(name).partition(".")[0], known, n=3)
        advice = f"did you mean {' or '.join(near)}?" if near else f"timm has {len(known)}: timm.list_models()"
        raise RowError(f"Timm: timm has no model {name!r}; {advice}")
    reserved = RESERVED & set(options)
    if reserved:
        raise RowError(f"Timm: {', '.join(sorted(reserved))} cannot be set in a row")
