"""`ImageLoader`: the same batches from memory and streamed, what it refuses, how it ends."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convlens as cl
from convlens.data import DataLoaders, PixelScale, TensorLoader, image_loader
from convlens.data.image_cache import decoded
from convlens.data.image_loader import ImageLoader, measured_scale, prefetched
from convlens.data.items import Items
from convlens.data.preprocessing import Preprocessing
from convlens.errors import ArgumentError, DataError

SCALE = PixelScale(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4]), 0.0, 1.0)
PIXELS = np.random.default_rng(0).integers(0, 256, (50, 3, 8, 10), np.uint8)
NAMES = tuple(f"{i}.png" for i in range(50))
ITEMS = Items(NAMES, torch.arange(50), NAMES)


@pytest.fixture
def mapped(tmp_path):
    (tmp_path / "pixels").write_bytes(PIXELS.tobytes())
    return np.memmap(tmp_path / "pixels", np.uint8, "r", shape=PIXELS.shape)


@pytest.fixture(params=["memory", "copied", "streamed"])
def make(request, mapped):
    """Makes a loader whose images lie in memory, or are streamed."""
    pixels, limit = {
        "memory": (PIXELS, None),
        "copied": (mapped, None),
        "streamed": (mapped, 500),
    }[request.param]

    def make(batch_size=8, items=ITEMS, **more):
        options = {"batch_size": batch_size, "scale": SCALE, "device": "cpu", "max_memory": limit}
        loader = ImageLoader(pixels, items, **{**options, **more})
        assert loader.streamed == (request.param == "streamed")
        return loader

    return make


def same(batches, others) -> bool:
    pairs = list(zip(batches, others, strict=True))
    return all(torch.allclose(x, a, atol=1e-5) and torch.equal(y, b) for (x, y), (a, b) in pairs)


def images():
    return SCALE.normalize_(torch.from_numpy(PIXELS).float() / 255)


@pytest.mark.parametrize("more", [{}, {"shuffle": True, "seed": 3}, {"drop_last": True}])
def test_batches_are_those_of_a_tensor_loader(make, more):
    loader = make(**more)
    expected = TensorLoader(images(), torch.arange(50), batch_size=8, **more)
    assert (len(loader), loader.n_items) == (len(expected), expected.n_items)
    assert (loader.input_shape, loader.device) == ((3, 8, 10), torch.device("cpu"))
    assert same([loader.peek(13)], [expected.peek(13)])
    for _ in range(3):
        batches = list(loader)  # kept until the end: no buffer is given twice
        assert same(batches, expected)
        assert all(x.dtype == torch.float32 and x.is_contiguous() for x, _ in batches)
    loader.set_epoch(1)
    expected.set_epoch(1)
    assert same(loader, expected)
    chosen = torch.tensor([3, 49, 3])
    assert same([loader.pick(chosen)], [expected.pick(chosen)])
    assert loader.items.files[3] == "3.png"


def test_the_middle_is_given_without_an_augmentation(make):
    loader = make(size=(6, 5))
    x, _ = next(iter(loader))
    assert torch.allclose(x, images()[:8, :, 1:7, 2:7], atol=1e-5)
    assert loader.input_shape == (3, 6, 5)


def test_items_may_lie_anywhere_in_the_pixels(make):
    rows = np.array([40, 3, 17])
    loader = make(items=ITEMS.take(rows), rows=rows)
    (x, y), *_ = loader
    assert torch.allclose(x, images()[torch.from_numpy(rows)], atol=1e-5)
    assert y.tolist() == rows.tolist()
    assert loader.items.files == ("40.png", "3.png", "17.png")


def turned(x, y, generator):
    """A tiny augmentation: some images are mirrored, labels become shares of classes."""
    assert x.dtype == torch.uint8
    flip = torch.rand(len(x), generator=generator) < 0.5
    out = x.float().div_(255)
    out[flip] = out[flip].flip(3)
    share = torch.rand(1, generator=generator)
    return out, torch.nn.functional.one_hot(y, 50) * share


def test_augmentation_is_a_function_of_seed_epoch_and_batch(make):
    first, second = (make(augment=turned, shuffle=True, seed=5) for _ in range(2))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    peeked = first.peek(20)
    epochs = [list(first) for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), before)
    x, y = (torch.cat(parts) for parts in zip(*epochs[0], strict=True))
    assert same([peeked], [(x[:20], y[:20])])
    second.set_epoch(2)
    assert same(second, epochs[2])
    shares = [float(y.max()) for batches in epochs for _, y in batches]
    assert len(set(shares)) == 21
    plain = images()[torch.cat([y for _, y in epochs[0]]).argmax(1)]
    mirrored = [not torch.allclose(a, b, atol=1e-5) for a, b in zip(x, plain, strict=True)]
    assert 10 < sum(mirrored) < 40
    picked, labels = first.pick(torch.tensor([4]))
    assert torch.allclose(picked, images()[4:5], atol=1e-5)
    assert labels.tolist() == [4]


def test_weights_draw_with_replacement_the_same_in_each_run(make):
    weights = torch.zeros(50)
    weights[[7, 9]] = torch.tensor([3.0, 1.0])
    loader = make(weights=weights, seed=2)
    epochs = [torch.cat([y for _, y in loader]).tolist() for _ in range(4)]
    assert all(len(one) == 50 and set(one) == {7, 9} for one in epochs)
    assert len(set(map(tuple, epochs))) == 4
    assert 120 < sum(one.count(7) for one in epochs) < 180
    again = make(weights=weights, seed=2)
    again.set_epoch(3)
    assert torch.cat([y for _, y in again]).tolist() == epochs[3]


def test_labels_of_every_kind(make):
    several = Items(NAMES, torch.rand(50, 4), tuple("abcd"), "labels")
    _, y = next(iter(make(items=several, shuffle=True)))
    assert y.shape == (8, 4)
    numbers = Items(NAMES, torch.rand(50), (), "numbers")
    _, y = make(items=numbers).peek(3)
    assert torch.equal(y, numbers.targets[:3])


def prefetching() -> list[str]:
    return [one.name for one in threading.enumerate() if "convlens-prefetching" in one.name]


def test_no_thread_is_left_where_an_epoch_is_left_early(mapped):
    loader = ImageLoader(
        mapped, ITEMS, batch_size=2, scale=SCALE, shuffle=True, device="cpu", max_memory=0
    )
    for _ in loader:
        assert prefetching()
        break
    assert prefetching() == []
    assert loader.epoch == 1
    assert len(list(loader)) == 25
    assert prefetching() == []


def test_an_error_of_the_thread_is_raised_where_the_batch_is_asked_for(mapped, tmp_path):
    loader = ImageLoader(mapped, ITEMS, batch_size=8, scale=SCALE, device="cpu", max_memory=0)
    os.truncate(tmp_path / "pixels", 20 * PIXELS[0].nbytes)
    batches = iter(loader)
    next(batches)
    next(batches)
    with pytest.raises(DataError, match="pixels was cut while it was read; run again to make it"):
        next(batches)
    assert prefetching() == []


def test_jobs_are_done_in_order_and_not_too_early():
    done: list[int] = []
    jobs = (lambda i=i: done.append(i) or i for i in range(10))
    results = prefetched(jobs, 3)
    for i in range(10):
        assert next(results) == i
        assert done[: i + 1] == list(range(i + 1))
        assert len(done) <= i + 4
    assert list(results) == []


def test_what_is_free_decides_where_the_images_lie(mapped, monkeypatch):
    def loader(pixels=mapped, **more):
        return ImageLoader(pixels, ITEMS, batch_size=8, scale=SCALE, device="cpu", **more)

    monkeypatch.setattr(image_loader, "free_memory", lambda device: 2 * PIXELS.nbytes)
    assert not loader().streamed
    assert loader().storage == "in memory: 12.0 kB of uint8"
    assert repr(loader()) == (
        "ImageLoader(50 images of 3×8×10, batches of 8, cpu, in memory: 12.0 kB of uint8)"
    )
    assert loader(max_memory=11_999).streamed
    monkeypatch.setattr(image_loader, "free_memory", lambda device: 2 * PIXELS.nbytes - 2)
    assert loader().streamed
    assert loader().storage == "streamed: 12.0 kB of uint8, of which 12.0 kB may be in memory"
    assert not loader(PIXELS).streamed  # it lies in memory


def test_a_cache_that_is_cleared_while_it_is_streamed(mapped, tmp_path):
    loader = ImageLoader(mapped, ITEMS, batch_size=8, scale=SCALE, device="cpu", max_memory=0)
    (tmp_path / "pixels").unlink()
    assert len(list(loader)) == 7


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"batch_size": 51, "drop_last": True}, "drop_last=True leaves no batch of 50 images"),
        ({"size": (9, 5)}, r"size=\(9, 5\) is larger than the stored images, \(8, 10\)"),
        ({"rows": np.arange(3)}, "items has 50 items for 3 images; give one for each image"),
        ({"rows": np.arange(1, 51)}, "rows goes from 1 to 50, but pixels has 50 images"),
        ({"weights": torch.ones(3)}, "weights must be 50 numbers of at least 0"),
        ({"weights": torch.zeros(50)}, "weights must be 50 numbers of at least 0, .* not all 0"),
        ({"weights": torch.full((50,), torch.nan)}, "weights must be 50 numbers of at least 0"),
    ],
)
def test_arguments_that_cannot_work(make, more, sentence):
    with pytest.raises(ArgumentError, match=sentence):
        make(**more)


def test_pixels_of_another_kind():
    with pytest.raises(ArgumentError, match=r"uint8 of four axes \(N, C, H, W\), got float32 of"):
        ImageLoader(np.zeros((2, 3, 4, 4), np.float32), ITEMS, batch_size=1, scale=SCALE)


def test_the_scale_is_that_of_the_images(mapped):
    rows = np.arange(5, 45)
    scale = measured_scale(mapped, rows)
    std, mean = torch.std_mean(
        torch.from_numpy(PIXELS[rows]).double() / 255, dim=(0, 2, 3), correction=0
    )
    assert torch.allclose(scale.mean.double(), mean, atol=1e-6)
    assert torch.allclose(scale.std.double(), std, atol=1e-6)
    assert scale.is_known
    grey = np.full((3, 1, 224, 224), 201, np.uint8)
    assert measured_scale(grey, np.arange(3)).std.tolist() == [1.0]


def test_data_loaders_know_it(make):
    train, valid = make(shuffle=True), make()
    dls = DataLoaders(train, valid, classes=NAMES, name="photos", scale=SCALE)
    assert (dls.facts()["n_train"], dls.facts()["n_valid"]) == (50, 50)
    assert dls.facts()["input_shape"] == [3, 8, 10]
    assert "train: 50 images of 3×8×10, 7 batches of 8" in repr(dls)
    assert dls.device == torch.device("cpu")


def test_predictions_see_files_as_validation_does(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path / "cache"))
    paths = [tmp_path / f"{i}.jpg" for i in range(6)]
    for i, path in enumerate(paths):
        pixels = np.random.default_rng(i).integers(0, 256, (40 + 9 * i, 60, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    settings = Preprocessing((14, 14), "crop", 3, margin=1 / 0.875)
    found = decoded(paths, settings)
    items = Items(tuple(map(str, paths)), torch.tensor([0, 1] * 3), ("a", "b"))
    loader = ImageLoader(
        found.pixels, items, batch_size=6, scale=SCALE, size=(14, 14), device="cpu"
    )
    dls = DataLoaders(
        loader, loader, classes=["a", "b"], scale=SCALE, preprocessing=found.preprocessing
    )
    torch.manual_seed(0)
    learn = cl.Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(3 * 14 * 14, 2)), run=None)
    (x, _), *_ = loader
    expected = learn.model.eval()(x).softmax(1)
    for given in (paths, [Image.open(path) for path in paths], list(map(str, paths))):
        assert torch.allclose(learn.predict(given).probabilities, expected, atol=1e-5)
