"""What this fork does to upstream's engine/trainer.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ultralytics.fork import arguments, decoder_size
from ultralytics.fork.checkpoints.model_to_save import check_model_to_save
from ultralytics.fork.data.dataset_errors import raise_plain_cause
from ultralytics.fork.data.official_augmentation import say_what_is_replaced
from ultralytics.fork.distributed import elastic_launch
from ultralytics.fork.hooks import rtdetr
from ultralytics.fork.hooks.override import install, override
from ultralytics.fork.layer_numbers import choose_frozen_places
from ultralytics.fork.pretrained.transfer_report import write_transfer_report
from ultralytics.fork.pretrained.weight_kinds import is_foreign_detector
from ultralytics.fork.rtdetr import find_head, unwrap_model
from ultralytics.fork.training import distillation, losses, nonfinite_steps, recipe, resume
from ultralytics.fork.training.activation_checkpoints import checkpoint_activations
from ultralytics.fork.training.batch_transforms import transform_batches
from ultralytics.fork.training.compiled_training import give_targets
from ultralytics.fork.training.explain_interruption import explain_interruption
from ultralytics.fork.training.export_check import try_exports
from ultralytics.fork.training.fast_kernels import use_fast_kernels
from ultralytics.fork.training.frozen_backbone import freeze_backbone, keep_offsets_frozen, train_new_backbone
from ultralytics.fork.training.inference_tensors import thaw
from ultralytics.fork.training.mixed_precision import choose_precision
from ultralytics.fork.training.norm_gradients import match_gradient_layout
from ultralytics.fork.training.norm_recomputation import recompute_norms
from ultralytics.fork.training.resumable_checkpoint import save_resumable_checkpoint
from ultralytics.fork.training.resume import begin_epoch
from ultralytics.fork.training.run_state import RunState
from ultralytics.fork.training.schedule import (
    choose_schedule,
    count_warm_up_in_steps,
    square_warm_up,
    warn_of_long_warm_up,
)
from ultralytics.utils import RANK

__all__ = "begin_epoch", "install"

TRAINER = "ultralytics.engine.trainer.BaseTrainer"


@override(TRAINER)
def check_resume(original: Any, self: Any, overrides: dict) -> None:
    """Join the other processes of a launcher; check what the user asked for; resume in the checkpoint's folder.

    The constructor calls this first, so it also makes `trainer.fork`.
    """
    vars(self).setdefault("fork", RunState())
    if elastic_launch.is_launched():
        from ultralytics.fork.distributed.launched_trainer import join_launcher
        from ultralytics.fork.hooks import ops

        ops.install()
        if join_launcher(self, overrides):
            return
    decoder_size.refuse_in_mode("train", self.args, overrides)
    original(self, overrides)
    resume.stay_in_checkpoint_folder(self, overrides)
    if recipe.is_rtdetr_trainer(self):
        rtdetr.install()
    recipe.check_recipe(self, overrides)


@override(TRAINER)
def get_dataset(original: Any, self: Any) -> dict:
    """Raise an error of one line as it is, where upstream wraps it into another."""
    with raise_plain_cause():
        data = original(self)
    found = data if isinstance(data, dict) else getattr(self, "data", None) or {}  # earlier releases return paths
    arguments.check_classes(self.args, found.get("names"))
    return data


@override(TRAINER)
def setup_model(original: Any, self: Any) -> Any:
    """Write into the run's folder which pretrained weights arrived; freeze layers by their indices.

    A model of RT-DETR gets the first scores and the frozen parts of its recipe.
    """
    if is_foreign_detector(self.model):  # named to a process that has no model yet
        from ultralytics.nn.tasks import load_checkpoint

        self.args.pretrained, self.model = str(self.model), load_checkpoint(self.model)[0].yaml
    checkpoint = original(self)
    write_transfer_report(self)
    model = unwrap_model(self.model)
    self.args.freeze = keep_offsets_frozen(model, choose_frozen_places(model, self.args.freeze))
    train_new_backbone(self, model)
    freeze_backbone(self, model)
    if self.args.loss:
        losses.init_score_biases(model)
    if self.args.fast_kernels:
        use_fast_kernels(model, self.device)
    if self.args.checkpoint_activations is True:
        checkpoint_activations(model)
    elif self.args.checkpoint_activations and not self.args.compile:  # a compiled model plans its own recomputation
        recompute_norms(model)
    if self.fork.teacher:
        distillation.attach_teacher(self, model)
    return checkpoint


@override(TRAINER)
def build_optimizer(original: Any, self: Any, model: nn.Module, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
    """Give the backbone its learning rate, and biases their weight decay."""
    optimizer = original(self, model, *args, **kwargs)
    recipe.spare_vectors(unwrap_model(model), optimizer)
    recipe.decay_biases(self, model, optimizer)
    recipe.slow_backbone(self, model, optimizer)
    return optimizer


@override(TRAINER)
def _setup_scheduler(original: Any, self: Any) -> None:
    """Put DEIM's schedule in place of upstream's where it is asked for."""
    original(self)
    choose_schedule(self)


@override(TRAINER, since="8.4.105")
def _get_warmup_iterations(original: Any, self: Any, num_batches: int) -> int:
    """Count the warm-up of `warmup_steps` by the batches that an epoch has now."""
    count_warm_up_in_steps(self, num_batches)
    return original(self, num_batches)


@override(TRAINER)
def _setup_train(original: Any, self: Any, *args: Any) -> None:
    """Say what a checkpoint will not keep; watch each loss; give batch norms on a CPU gradients in their layout."""
    freeze = self.args.freeze
    choose_precision(self)
    with distillation.take_teacher(self):
        try:
            original(self, *args)
        finally:
            self.args.freeze = freeze  # which `setup_model` has translated
    if RANK in (-1, 0):
        with distillation.set_aside(self):
            check_model_to_save(unwrap_model(self.model), "Each checkpoint of this run")
    recipe.warn_of_start_from_scratch(self)
    if find_head(unwrap_model(self.model)):
        if RANK in (-1, 0):
            arguments.warn_once.cache_clear()  # each training says it
            arguments.say_what_is_ignored("train", self.args)
            arguments.say_what_training_does(self.args, self.device)
            losses.say_gains(self.args)
            say_what_is_replaced(self.args)
        recipe.check_that_switches_act(self, unwrap_model(self.model))
        recipe.name_official_recipe(self)
        transform_batches(self)
        give_targets(self)
    try_exports(self)
    count_warm_up_in_steps(self, len(self.train_loader))
    warn_of_long_warm_up(self)
    square_warm_up(self)
    nonfinite_steps.watch_losses(self)
    if self.device.type == "cpu":
        match_gradient_layout(unwrap_model(self.model))


@override(TRAINER, since="8.3.100")
def _model_train(original: Any, self: Any) -> None:
    """Use nothing in training that layers have kept in inference mode."""
    original(self)
    thaw(unwrap_model(self.model))


@override(TRAINER)
def optimizer_step(original: Any, self: Any) -> None:
    """Clip gradients to `clip_grad`, and skip a step whose gradient is not finite."""
    with nonfinite_steps.clip_gradients_instead(self):
        original(self)


@override(TRAINER)
def save_model(original: Any, self: Any) -> Any:
    """Write checkpoints atomically, with all that a resume needs."""
    return save_resumable_checkpoint(original, self)


@override(TRAINER)
def resume_training(original: Any, self: Any, ckpt: dict | None) -> None:
    """Keep the training state of the checkpoint for `begin_epoch`."""
    with distillation.set_aside(self):
        resume.keep_training_state(original, self, ckpt)


@override(TRAINER, since="8.3.213")
def _handle_nan_recovery(original: Any, self: Any, epoch: int) -> bool:
    """Run an epoch again only if it had no finite loss at all."""
    with distillation.set_aside(self):
        return nonfinite_steps.recover_epoch(original, self, epoch)


@override(TRAINER)
def _do_train(original: Any, self: Any, *args: Any) -> None:
    """End a run that is interrupted with one line that says what is saved and how to go on."""
    with explain_interruption(self):
        original(self, *args)
