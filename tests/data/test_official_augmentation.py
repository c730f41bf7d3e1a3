"""The official augmentation: its order and probabilities, boxes on their objects, images in their own size."""

import copy
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from ultralytics.cfg import get_cfg
from ultralytics.fork.data import official_augmentation
from ultralytics.fork.errors import Refused
from ultralytics.fork.hooks import rtdetr
from ultralytics.fork.training.augmentation_epochs import EpochPlan
from ultralytics.models.rtdetr.val import RTDETRDataset

HEIGHT, WIDTH, SIZE = 120, 200, 96
OFFICIAL = dict(photometric=0.5, zoom_out=0.5, iou_crop=0.8)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Six images, wider than high, each with a white square on grey, and its label."""
    root = tmp_path_factory.mktemp("squares")
    (root / "images").mkdir()
    (root / "labels").mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        side = int(rng.integers(30, 60))
        x, y = int(rng.integers(0, WIDTH - side)), int(rng.integers(0, HEIGHT - side))
        image[y : y + side, x : x + side] = 255
        cv2.imwrite(str(root / "images" / f"{i}.png"), image)
        box = (x + side / 2) / WIDTH, (y + side / 2) / HEIGHT, side / WIDTH, side / HEIGHT
        (root / "labels" / f"{i}.txt").write_text(f"{i % 2} {' '.join(map(str, box))}\n")
    return root / "images"


def dataset(images, channels=3, augment=True, **switches):
    rtdetr.install()
    args = get_cfg(overrides=switches)
    names = {"names": {0: "a", 1: "b"}, "channels": channels}
    return RTDETRDataset(
        img_path=str(images), imgsz=SIZE, batch_size=2, augment=augment, hyp=args, data=names, task="detect"
    )


def white_box(image):
    """The box around what is white, XYXY in pixels."""
    mask = image.float().mean(0) > 200
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return torch.tensor([columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1]).float()


def xyxy(sample):
    centre, size = sample["bboxes"][:, :2], sample["bboxes"][:, 2:]
    return torch.cat([centre - size / 2, centre + size / 2], 1) * SIZE


@pytest.mark.parametrize("switches", [dict(zoom_out=1.0), dict(iou_crop=1.0), dict(iou_crop=1e-9), OFFICIAL], ids=str)
def test_boxes_stay_on_their_objects(images, switches):
    torch.manual_seed(0)
    samples = dataset(images, **{**switches, "photometric": 0.0})
    boxes = 0
    for i in list(range(6)) * 5:
        sample = samples[i]
        assert sample["img"].shape == (3, SIZE, SIZE) and sample["img"].dtype == torch.uint8
        assert sample["cls"].shape == (len(sample["bboxes"]), 1)
        if len(sample["bboxes"]):
            boxes += 1
            assert sample["cls"].tolist() == [[i % 2]]
            assert float((white_box(sample["img"]) - xyxy(sample)[0]).abs().max()) <= 2
    assert boxes >= 20


def test_the_order_and_the_probabilities(images):
    from torchvision.transforms import v2

    one = dataset(images, **OFFICIAL).transforms.transforms[0]
    assert isinstance(one.distort, v2.RandomPhotometricDistort) and one.distort.p == 0.5
    assert (
        isinstance(one.zoom_out, v2.RandomZoomOut)
        and one.zoom_out.p == 0.5
        and tuple(one.zoom_out.side_range) == (1, 4)
    )
    assert one.crop.p == 0.8 and isinstance(one.crop.transforms[0], v2.RandomIoUCrop)
    assert (one.crop.transforms[0].min_scale, one.crop.transforms[0].max_scale) == (0.3, 1)
    assert one.sanitize.min_size == 1 and one.flip.p == 0.5 and one.resize.antialias is True
    called = []
    for name in ("distort", "zoom_out", "crop", "sanitize", "flip", "resize"):
        setattr(one, name, lambda sample, name=name: called.append(name) or sample)
    one(one.dataset.get_image_and_label(0))
    assert called == ["distort", "zoom_out", "crop", "sanitize", "flip", "resize", "sanitize"]


def test_an_epoch_without_augmentation_flips_and_stretches(images):
    samples = dataset(images, photometric=1.0, zoom_out=1.0, iou_crop=1.0, mosaic=1.0, fliplr=0.0)
    samples.plan = EpochPlan(augments=False, mixes=False)
    for i in range(6):
        image = cv2.imread(samples.im_files[i])
        scale = torch.tensor([SIZE / WIDTH, SIZE / HEIGHT] * 2)
        expected = white_box(torch.from_numpy(image).permute(2, 0, 1)) * scale
        assert torch.allclose(xyxy(samples[i])[0], expected, atol=0.01)


def test_a_mosaic_is_of_four_images_without_zoom_and_crop(images):
    torch.manual_seed(0)
    samples = dataset(images, **OFFICIAL, mosaic=1.0)
    samples.plan = EpochPlan()
    samples.close_mosaic(get_cfg(overrides=OFFICIAL))  # is of upstream's mosaic
    one = samples.transforms.transforms[0]
    one.zoom_out = one.crop = lambda _: pytest.fail("a mosaic is not zoomed out or cropped")
    counts = [len(samples[i]["bboxes"]) for i in list(range(6)) * 4]
    assert max(counts) == 4 and np.mean(counts) > 2.5
    for i in range(6):
        boxes = xyxy(samples[i])
        assert bool(((boxes >= 0) & (boxes <= SIZE)).all())


def test_images_keep_their_size_until_the_end(images):
    samples = dataset(images, **OFFICIAL)
    image, before, after = samples.load_image(0)
    assert image.shape[:2] == before == after == (HEIGHT, WIDTH)
    for i in range(6):
        samples.load_image(i)
    assert sum(im is not None for im in samples.ims) <= 2  # whole images are not collected
    for other in (dataset(images), dataset(images, augment=False, **OFFICIAL)):
        assert other.load_image(0)[0].shape[:2] == (SIZE, SIZE) and not hasattr(other, "plan")


def test_huge_images_are_reduced_first(images, tmp_path):
    shutil.copytree(images.parent, tmp_path / "set")
    cv2.imwrite(str(tmp_path / "set" / "images" / "0.png"), np.zeros((500, 1000, 3), np.uint8))
    assert dataset(tmp_path / "set" / "images", **OFFICIAL).load_image(0)[0].shape == (2 * SIZE, 4 * SIZE, 3)


def test_without_the_switches_the_transforms_are_upstream_s(images):
    names = [type(t).__name__ for t in dataset(images).transforms.transforms]
    assert "OfficialAugmentation" not in names and len(names) > 3


def test_images_without_objects(images, tmp_path):
    shutil.copytree(images.parent, tmp_path / "set")
    (tmp_path / "set" / "labels" / "0.txt").write_text("")
    samples = dataset(tmp_path / "set" / "images", photometric=1.0, zoom_out=1.0, iou_crop=1.0)
    for _ in range(5):
        sample = samples[0]
        assert sample["bboxes"].shape == (0, 4) and sample["cls"].shape == (0, 1)


def test_other_channels_have_no_colours_to_distort():
    five = SimpleNamespace(channels=5, img_path="multispectral", imgsz=SIZE)
    with pytest.raises(Refused, match="photometric=0.5 distorts colours, and the images of multispectral have 5"):
        official_augmentation.OfficialAugmentation(five, get_cfg(overrides=OFFICIAL))
    official_augmentation.OfficialAugmentation(five, get_cfg(overrides={**OFFICIAL, "photometric": 0.0}))


@pytest.mark.parametrize("channels", [1, 5])
def test_images_of_other_channels(channels):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (40, 60, channels), dtype=np.uint8)
    from ultralytics.utils.instance import Instances

    boxes = Instances(np.array([[0.5, 0.5, 0.5, 0.5]], np.float32), np.zeros((1, 0, 2), np.float32), bbox_format="xywh")
    labels = {"img": image, "cls": np.zeros((1, 1), np.float32), "instances": boxes}
    sample = official_augmentation.read_sample(copy.deepcopy(labels))
    assert sample["boxes"].tolist() == [[15, 10, 45, 30]]
    assert np.array_equal(official_augmentation.write_sample(dict(labels), sample)["img"], image)


def test_what_it_replaces_is_one_line(monkeypatch):
    said = []
    monkeypatch.setattr(official_augmentation.LOGGER, "warning", said.append)
    official_augmentation.say_what_is_replaced(get_cfg(overrides=dict(scale=0.9, flipud=0.5)))
    assert not said
    official_augmentation.say_what_is_replaced(get_cfg(overrides=dict(scale=0.9, flipud=0.5, **OFFICIAL)))
    assert len(said) == 1 and said[0].startswith("scale, flipud do nothing with photometric, zoom_out or iou_crop")
