"""Each model on the device: equal to the CPU's, trained and fused, in all precisions and layouts, as a CUDA graph."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from _bench.cases import BASELINE, PUBLISHED
from _gpu.checks import NotHere, Options, require, run_check
from _shared.peak_memory import measure_peak_memory
from ultralytics.fork.export.compare_detections import BOUNDS, compare_detections, make_inputs
from ultralytics.fork.rtdetr import get_head
from ultralytics.fork.training.fast_kernels import use_fast_kernels
from ultralytics.fork.training.norm_recomputation import recompute_norms
from ultralytics.nn.tasks import RTDETRDetectionModel

TINY = ["rtdetr-tiny", "rtdetr-tiny-FLA", "rtdetr-tiny-Biformer", "rtdetr-tiny-EMO", "rtdetr-tiny-MQA"]
NAMES = [BASELINE, *PUBLISHED, "rtdetr-r18"]
OBJECTS = 5  # in each image of a training step
LOSS = 2e-3  # largest relative difference of the device's loss to the CPU's, both fp32
HALF = 0.3  # the same of maps in half precision: random weights make rounding larger, 0.12 on a CPU
HALF_LOSS = 0.05  # of a loss in half precision


def list_names(options: Options) -> list[str]:
    """List the models."""
    return TINY[:2] if options.small else NAMES


def check_model(name: str, options: Options) -> None:
    """Run all checks of one model."""
    checks = ModelChecks(name, options)
    for title, check in {
        "as on the CPU": checks.compare_with_cpu,
        "fused": checks.compare_fused,
        "channels last": checks.compare_channels_last,
        "half": checks.compare_half,
        "training step": lambda: checks.train(None),
        "training step, bf16": lambda: checks.train(torch.bfloat16),
        "training step, fp16": lambda: checks.train(torch.float16),
        "training step, switches": checks.train_with_switches,
        "CUDA graph": checks.replay_graph,
    }.items():
        run_check("models", f"{name}: {title}", check)


class ModelChecks:
    """The checks of one model, against its output and its loss on the CPU."""

    def __init__(self, name: str, options: Options):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.manual_seed(0)
        self.device, self.is_small = options.torch_device, options.small
        self.size = (96, 64) if options.small else (320, 256)
        self.model = RTDETRDetectionModel(f"{name}.yaml", verbose=False)
        self.model.nc = self.model.yaml["nc"]
        settle_norms(self.model, self.size)
        self.images = make_inputs(1, self.size)
        self.batch = self.make_batch()
        with torch.no_grad():
            self.expected = {key: self.model.eval()(x)[0] for key, x in self.images.items()}
        self.loss = compute_loss(copy.deepcopy(self.model), self.batch).item()

    def make_batch(self) -> dict[str, torch.Tensor]:
        """Make two photographs with random objects."""
        generator = torch.Generator().manual_seed(0)
        return {
            "img": torch.cat(list(self.images.values())),
            "batch_idx": torch.arange(2).repeat_interleave(OBJECTS).float(),
            "cls": torch.randint(0, self.model.nc, (2 * OBJECTS, 1), generator=generator).float(),
            "bboxes": torch.rand(2 * OBJECTS, 4, generator=generator) * 0.3 + 0.3,
        }

    def on_device(self) -> RTDETRDetectionModel:
        """Give a copy of the model on the device."""
        return copy.deepcopy(self.model).to(self.device)

    def compare(self, run: Callable[[torch.Tensor], torch.Tensor], bits: int = 32) -> dict:
        """Compare detections with the CPU's, in fp32 also by the tensors that the head gets."""
        figures: dict = {}
        for key, x in self.images.items():
            with torch.inference_mode():
                found = run(x.to(self.device))
            parity = compare_detections(key, self.expected[key], found, self.size, BOUNDS[bits])
            require(parity.is_within(BOUNDS[bits]), str(parity))
            figures = {"box px": max(parity.box, figures.get("box px", 0.0)), "score": parity.score}
        return figures

    def compare_with_cpu(self) -> dict:
        """The same detections, and the same maps in front of the head."""
        model = self.on_device().eval()
        figures = self.compare(lambda x: model(x)[0])
        x = next(iter(self.images.values()))
        maps = read_head_inputs(self.model.eval(), x), read_head_inputs(model, x.to(self.device))
        error = max(float((a - b.cpu()).abs().max() / a.abs().max()) for a, b in zip(*maps, strict=True))
        require(error < 1e-3, f"maps differ by {error:.2g} of their largest value")
        peak = measure_peak_memory(torch.inference_mode()(lambda: model(x.to(self.device))), self.device)
        return {**figures, "maps": error, "MiB": peak}

    def compare_fused(self) -> dict:
        """The same detections from the fused model."""
        model = self.on_device().eval().fuse(verbose=False)
        return self.compare(lambda x: model(x)[0])

    def compare_channels_last(self) -> dict:
        """The same detections in another layout."""
        model = self.on_device().eval().to(memory_format=torch.channels_last)
        return self.compare(lambda x: model(x.to(memory_format=torch.channels_last))[0])

    def compare_half(self) -> dict:
        """Finite in half precision, and maps near those of fp32; rounding may choose other queries."""
        model, x = self.on_device().eval().half(), next(iter(self.images.values()))
        maps = read_head_inputs(self.model.eval(), x), read_head_inputs(model, x.to(self.device).half())
        error = max(float((a - b.float().cpu()).norm() / a.norm()) for a, b in zip(*maps, strict=True))
        with torch.inference_mode():
            require(bool(model(x.to(self.device).half())[0].isfinite().all()), "detections are not finite")
        require(error < HALF, f"maps differ by {error:.2g} of their norm")
        return {"maps": error}

    def train(self, dtype: torch.dtype | None, model: RTDETRDetectionModel | None = None) -> dict:
        """A loss as on the CPU, and finite gradients for all parameters."""
        model = (model or self.on_device()).train()
        batch = {key: value.to(self.device) for key, value in self.batch.items()}
        scaler = torch.amp.GradScaler(self.device.type, enabled=dtype is torch.float16 and self.device.type == "cuda")

        def step() -> None:
            model.zero_grad()
            with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
                self.found = compute_loss(model, batch)
            scaler.scale(self.found).backward()

        if self.device.type == "cpu" and dtype is torch.float16:
            raise NotHere("a CPU trains in bf16")
        peak = measure_peak_memory(step, self.device)
        self.check_gradients(model)
        error = abs(self.found.item() - self.loss) / self.loss
        require(error < (HALF_LOSS if dtype else LOSS), f"the loss differs by {error:.2g} of {self.loss:.4g}")
        return {"loss": error, "MiB": peak}

    def check_gradients(self, model: nn.Module) -> None:
        """Every parameter that learns has a gradient, and a finite one."""
        without = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
        require(not [key for key in without if "denoising" not in key], f"no gradient: {without[:3]}")
        broken = [key for key, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        require(not broken, f"gradients that are not finite: {broken[:3]}")

    def train_with_switches(self) -> dict:
        """The same with the switches of the recipes: fast kernels, and norms that are computed again."""
        model = self.on_device()
        use_fast_kernels(model, self.device)
        recompute_norms(model)
        return self.train(None, model)

    def replay_graph(self) -> dict:
        """The fused model as one CUDA graph, replayed on another image."""
        if self.device.type != "cuda":
            raise NotHere("CUDA graphs need a GPU")
        model = self.on_device().eval().fuse(verbose=False)
        images = [x.to(self.device) for x in self.images.values()]
        with torch.inference_mode():
            fixed, stream = images[0].clone(), torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # what is made once, anchors above all, is made outside of the graph
                for _ in range(3):
                    model(fixed)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found = model(fixed)[0]

        def run(x: torch.Tensor) -> torch.Tensor:
            fixed.copy_(x)
            graph.replay()
            return found.clone()

        return self.compare(run)


def settle_norms(model: nn.Module, size: tuple[int, int]) -> None:
    """Let the norms of a new model have statistics of photographs, so that its outputs are of a usual size."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 1.0
        m.train()
    with torch.no_grad():
        model.eval()
        for m in norms:
            m.train()
        model.predict(torch.cat(list(make_inputs(1, size).values())))  # pyright: ignore[reportCallIssue]
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum


def read_head_inputs(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Run a model and give the maps that its head gets."""
    found: list[torch.Tensor] = []
    handle = get_head(model).register_forward_pre_hook(lambda _, inputs: found.extend(inputs[0]))
    try:
        with torch.inference_mode():
            model(x)
    finally:
        handle.remove()
    return found


def compute_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Compute the loss of a training step without denoising, whose noise each device draws for itself."""
    get_head(model).num_denoising = 0
    return model.train()(batch)[0].sum()
