"""Each process gets its share of a batch and a device of its own, and norms are shared."""

import copy
import functools
import pickle

import pytest
import torch
from torch import nn

from ultralytics.fork.distributed import elastic_launch, global_batch, launched_trainer, reductions
from ultralytics.fork.instance_mixin import mix_into


@pytest.fixture
def four(monkeypatch):
    """Look like one of four processes, two on each of two nodes."""
    for module in (elastic_launch, launched_trainer, global_batch):
        monkeypatch.setattr(module, "WORLD_SIZE", 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(elastic_launch, "LOCAL_RANK", 1)


def test_shares_of_a_batch_are_the_batch(four):
    for images in range(1, 12):
        shares = [global_batch.share_of_batch(images, rank) for rank in range(4)]
        assert [i for begin, end in shares for i in range(begin, end)] == list(range(images))
        sizes = [end - begin for begin, end in shares]
        assert max(sizes) - min(sizes) <= 1 and sizes[0] == max(sizes)  # the first one, which plots, has one


def test_a_process_without_an_image_gets_a_stand_in(four, monkeypatch):
    monkeypatch.setattr(global_batch, "share_of_batch", functools.partial(global_batch.share_of_batch, rank=3))
    batches = torch.utils.data.BatchSampler(torch.utils.data.SequentialSampler(range(10)), 8, drop_last=False)
    assert list(global_batch.ShareBatchSampler(batches)) == [[6, 7], [8]]
    images = global_batch.ShareSampler(batches)
    assert list(images) == [6, 7] and len(images) == 10


def test_batches_must_come_out(four):
    launched_trainer.check_batch(8)
    with pytest.raises(ValueError, match=r"batch=6 .* 4 \(WORLD_SIZE\) .* such as batch=8"):
        launched_trainer.check_batch(6)
    with pytest.raises(ValueError, match="batch=-1 measures a batch, on one process only: name a multiple of 4"):
        launched_trainer.check_batch(-1)


def test_devices(four, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert elastic_launch.choose_device("") == elastic_launch.choose_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert elastic_launch.choose_device("") == "1" and elastic_launch.choose_device("cpu") == "cpu"
    monkeypatch.setattr(torch, "npu", torch.cuda, raising=False)
    assert elastic_launch.choose_device("4,6") == "6" and elastic_launch.choose_device("npu:4,6") == "npu:6"
    for device in ("4", "4,4", "1,2,3"):
        with pytest.raises(ValueError, match=f"device={device} for 2 processes on this node: name as many different"):
            elastic_launch.choose_device(device)
    with pytest.raises(ValueError, match="device=4,8: .* has 8 such devices, numbered from 0"):
        elastic_launch.choose_device("4,8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="2 processes on a node with 1 GPUs: use --nproc-per-node=1"):
        elastic_launch.choose_device("")


def test_a_shared_norm_leaves_no_trace():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    keys = list(model.state_dict())
    reductions.sync_batch_norms(model)
    assert type(model[1]) is not nn.BatchNorm2d and isinstance(model[1], nn.BatchNorm2d)
    assert list(model.state_dict()) == keys
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(again[1]) is nn.BatchNorm2d
        torch.testing.assert_close(again.eval()(torch.ones(1, 3, 2, 2)), model.eval()(torch.ones(1, 3, 2, 2)))
    mix_into(model[1], reductions.GlobalBatchNorm)  # a second time
    assert type(copy.deepcopy(model[1])) is nn.BatchNorm2d
