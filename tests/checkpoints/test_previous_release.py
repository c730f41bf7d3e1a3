"""Checkpoints that the release 8.4.190+addmodules.1 made, before its machinery moved to ultralytics/fork, still work.

Tiny models with every added module, trained for two epochs on drawn shapes: `attention` (focused linear and bi-level
routing attention, alone and in HG blocks), `EMO`, `MQA`, and `stopped`, a run that was interrupted in its second epoch.
"""

import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, draw_shapes

from ultralytics import RTDETR, YOLO

FOLDER = ROOT / "tests" / "checkpoints" / "release_8.4.190_1"


@pytest.mark.parametrize("name", ["attention", "EMO", "MQA"])
@pytest.mark.end_to_end("restricted loading")
def test_it_opens_and_finds_what_it_found(name):
    arrays = np.load(FOLDER / "outputs.npz")
    model = YOLO(FOLDER / f"{name}.pt")
    assert type(model) is RTDETR
    added = {type(m).__module__ for m in model.model.modules() if ".AddModules." in type(m).__module__}
    assert added
    with torch.no_grad():
        output = model.model.float().eval()(torch.from_numpy(arrays["image"]))
    output = output[0] if isinstance(output, (list, tuple)) else output
    torch.testing.assert_close(output, torch.from_numpy(arrays[name]), atol=1e-4, rtol=1e-4)


def test_its_interrupted_run_goes_on(tmp_path):
    """It has one epoch of two behind it, and ends with the second."""
    last = shutil.copy(FOLDER / "stopped.pt", tmp_path / "stopped.pt")
    data = draw_shapes(tmp_path, train=8, val=4)
    model = RTDETR(last)
    seen = []
    model.add_callback("on_train_epoch_start", lambda trainer: seen.append(trainer.epoch))
    model.train(resume=True, data=data, save_dir=str(tmp_path / "run"))
    assert seen == [1]
    assert torch.load(tmp_path / "run" / "weights" / "last.pt", weights_only=False)["optimizer"] is None
