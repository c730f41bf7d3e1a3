"""Run a study on this machine, one run after the other."""

from __future__ import annotations

import functools
import sys
import time
from typing import Any

from _compare.study_folder import Run, Study
from _compare.training_run import perform_run, read_epochs


def print_progress(text: str) -> None:
    """Print a line of the study, apart from what upstream prints of a run."""
    print(f"\nstudy: {text}", file=sys.stderr, flush=True)


def run_study(study: Study) -> None:
    """Do the runs that are not done, and print the progress of the study after each epoch."""
    runs = study.runs
    for number, run in enumerate(runs, 1):
        if run.is_done:
            continue
        left = RemainingTime(study)
        where = f"run {number} of {len(runs)}, {run.title}"
        resumes = ", continues from its checkpoint" if run.last.is_file() and not run.taken else ""
        print_progress(f"{where}{resumes}{left.text(run)}")
        perform_run(run, study.settings, functools.partial(report_epoch, where, run, left))
        report_failure(where, run)
        study.save()


def report_epoch(where: str, run: Run, left: RemainingTime, trainer: Any) -> None:
    """Print the progress of the run and the study after an epoch."""
    print_progress(f"{where}: {left.after(run, trainer)}")


def report_failure(where: str, run: Run) -> None:
    """Print the error of a run that has failed."""
    if not run.is_done:
        print_progress(f"{where} FAILED: {run.outcome['error']}")


class RemainingTime:
    """Estimate the remaining time from the seconds of an epoch of this model, or of all models so far."""

    def __init__(self, study: Study):
        self.study = study
        self.seconds: dict[str, list[float]] = {}
        for run in study.runs:
            curve = read_epochs(run.trained) if not run.taken else []
            if curve:
                self.seconds.setdefault(run.label, []).append(curve[-1]["time"] / len(curve))

    def epoch(self, label: str) -> float | None:
        """Return the seconds of an epoch."""
        known = self.seconds.get(label) or [s for found in self.seconds.values() for s in found]
        return sum(known) / len(known) if known else None

    def text(self, current: Run, left: int | None = None, total: int | None = None) -> str:
        """Format the remaining time of the study, if anything is known of it."""
        total = total or max((len(read_epochs(run.trained)) for run in self.study.runs if run.is_done), default=0)
        seconds = 0.0
        for run in self.study.runs:
            if run.is_done or run.taken:
                continue
            epoch = self.epoch(run.label)
            if not epoch or not total:
                return ""
            ahead = left if run == current and left is not None else total - len(read_epochs(run.trained))
            seconds += epoch * max(ahead, 0)
        return f"; {format_duration(seconds)} left"

    def after(self, run: Run, trainer: Any) -> str:
        """Format the progress of a run after an epoch."""
        done = trainer.epoch + 1
        self.seconds[run.label] = [(time.time() - trainer.train_time_start) / done]
        return f"epoch {done} of {trainer.epochs}{self.text(run, trainer.epochs - done, trainer.epochs)}"


def format_duration(seconds: float) -> str:
    """Format seconds in the units that matter."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"
