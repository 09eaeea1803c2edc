"""`TensorLoader` and `DataLoaders`: order, what they leave alone, what they refuse, pictures."""

from __future__ import annotations

from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from convlens.data import DataLoaders, TensorLoader, from_arrays
from convlens.data.loaders import shuffled
from convlens.errors import ArgumentError


def items(n, channels=1):
    """Images whose every pixel is their number, and that number as their label."""
    y = torch.arange(n)
    return y.float().view(-1, 1, 1, 1).repeat(1, channels, 2, 3), y


def loader(n=10, batch_size=4, **kwargs):
    return TensorLoader(*items(n), batch_size=batch_size, **kwargs)


def order(batches):
    return torch.cat([y for _, y in batches]).tolist()


def test_batches_have_their_shapes_and_types_and_the_last_one_is_smaller():
    fixed = loader()
    batches = list(fixed)
    assert [tuple(x.shape) for x, _ in batches] == [(4, 1, 2, 3), (4, 1, 2, 3), (2, 1, 2, 3)]
    assert all(x.dtype == torch.float32 and y.dtype == torch.int64 for x, y in batches)
    assert (len(fixed), fixed.n_items, fixed.batch_size) == (3, 10, 4)
    assert fixed.input_shape == (1, 2, 3)
    assert order(fixed) == order(fixed) == list(range(10))
    for x, y in loader(shuffle=True):
        assert torch.equal(x[:, 0, 0, 0], y.float())


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    first, second = loader(100, shuffle=True, seed=3), loader(100, shuffle=True, seed=3)
    second.set_epoch(5)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    epochs = [order(first) for _ in range(6)]
    assert torch.equal(torch.get_rng_state(), before)
    assert order(second) == epochs[5]
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert order(loader(100, shuffle=True, seed=4)) != epochs[0]
    orders = {tuple(shuffled(30, s, e).tolist()) for s in range(20) for e in range(20)}
    assert len(orders) == 400


def test_iterating_goes_on_to_the_next_epoch_even_if_left_early():
    batches = loader(shuffle=True)
    _, y = batches.peek(7)
    assert batches.epoch == 0
    assert y.tolist() == order(batches)[:7]
    next(iter(batches))
    assert batches.epoch == 2
    fresh = loader(shuffle=True)
    fresh.set_epoch(2)
    assert order(batches) == order(fresh)


def test_changing_a_batch_in_place_leaves_the_data_unchanged():
    for shuffle in (False, True):
        batches = loader(shuffle=shuffle)
        for x, y in batches:
            x.fill_(-1)
            y.fill_(-1)
        assert sorted(order(batches)) == list(range(10))
        assert all((x >= 0).all() for x, _ in batches)


def test_drop_last_leaves_out_only_the_smaller_batch():
    batches = loader(shuffle=True, drop_last=True)
    assert (len(batches), batches.n_items) == (2, 8)
    assert [len(y) for _, y in batches] == [4, 4]
    left_out = [set(range(10)) - set(order(batches)) for _ in range(5)]
    assert len(set(map(frozenset, left_out))) > 1
    assert loader(8, drop_last=True).n_items == 8


class Operations(TorchDispatchMode):
    """Counts every operation that torch runs."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_one_index_operation_per_batch_and_tensor_and_nothing_else():
    batches = loader(1000, batch_size=100, shuffle=True)
    with Operations() as operations:
        assert len(list(batches)) == 10
    counts = dict(operations.counts)
    assert counts.pop("index_select") == 2 * 10
    assert sum(counts.values()) <= 4, f"per epoch, not per batch: {counts}"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: loader(batch_size=0), "batch_size must be a whole number of at least 1, got 0"),
        (
            lambda: loader(batch_size="x"),
            "batch_size must be a whole number of at least 1, got 'x'",
        ),
        (lambda: loader(seed=-1), "seed must be a whole number of at least 0, got -1"),
        (lambda: loader().set_epoch(-2), "epoch must be a whole number of at least 0, got -2"),
        (
            lambda: loader(batch_size=11, drop_last=True),
            "drop_last=True leaves no batch of 10 imag",
        ),
        (
            lambda: TensorLoader(torch.zeros(3, 1, 2, 2), torch.zeros(2).long(), batch_size=1),
            "x has 3 images and y 2 labels; give one label for each image",
        ),
        (
            lambda: TensorLoader(torch.zeros(3, 2, 2), torch.zeros(3).long(), batch_size=1),
            r"x must have four axes \(N, C, H, W\): images, .* got shape \(3, 2, 2\)",
        ),
        (
            lambda: DataLoaders([items(3)]).to_uint8(torch.zeros(3, 2, 2)),
            r"x must have four axes \(N, C, H, W\): images, .* got shape \(3, 2, 2\)",
        ),
        (
            lambda: DataLoaders(batch for batch in loader()),
            r"train must be batches \(x, y\) that can be iterated in every epoch.* got generator",
        ),
        (lambda: DataLoaders(loader(), 3), r"valid must be batches \(x, y\) that .* got int"),
        (lambda: DataLoaders([]).show_batch(), "train has no batches; give it at least one"),
        (lambda: DataLoaders([items(5)]).show_batch(0), "n must be a whole number of at least 1"),
        (
            lambda: DataLoaders([items(3)], classes="cats"),
            "classes must be a list of names, got 'c",
        ),
    ],
)
def test_arguments_that_cannot_work(make, sentence):
    with pytest.raises(ArgumentError, match=sentence):
        make()


def test_any_iterables_of_batches_are_accepted():
    x, y = items(10, channels=3)
    torch_loader = DataLoader(TensorDataset(x, y), batch_size=4)
    for train in (torch_loader, [(x, y)]):
        dls = DataLoaders(train, train, classes=["a", 2], name="mine")
        assert order(dls.train) == order(dls.valid) == list(range(10))
        assert (dls.classes, dls.name, dls.device) == (("a", "2"), "mine", torch.device("cpu"))
        assert dls.facts()["n_train"] is None
    assert repr(DataLoaders(torch_loader)) == (
        "DataLoaders('data', 0 classes, cpu)\n  train: DataLoader, 3 batches\n  valid: none"
    )
    assert DataLoaders([(x, y)], device="meta").device == torch.device("meta")


def test_facts_are_plain_json():
    dls = from_arrays(*arrays(20), layout="NHWC", valid=0.25, batch_size=8, name="toy")
    assert dls.facts() == {
        "name": "toy",
        "n_train": 15,
        "n_valid": 5,
        "input_shape": [3, 4, 6],
        "classes": ["0", "1"],
        "batch_size": 8,
    }
    assert DataLoaders(dls.train).facts()["n_valid"] == 0
    assert DataLoaders(dls.train, [next(iter(dls.train))]).facts()["n_valid"] is None
    assert repr(dls) == (
        "DataLoaders('toy', 2 classes, cpu)\n  train: 15 images of 3×4×6, 2 batches of 8\n"
        "  valid: 5 images of 3×4×6, 1 batch of 8"
    )


def arrays(n, channels=3):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, 4, 6, channels), np.uint8), np.arange(n) % 2


@pytest.fixture
def _close_figures():
    yield
    plt.close("all")


@pytest.mark.usefixtures("_close_figures")
def test_show_batch_draws_the_next_training_images_with_their_class():
    dls = from_arrays(*arrays(20), layout="NHWC", batch_size=4, classes=["cat", "dog"])
    ax = dls.show_batch(6)
    ax.figure.canvas.draw()
    x, y = next(iter(dls.train))
    assert [text.get_text() for text in ax.texts][:4] == [["cat", "dog"][i] for i in y.tolist()]
    assert len(ax.images) == 6
    np.testing.assert_array_equal(ax.images[0].get_array(), dls.to_uint8(x)[0])
    _, given = plt.subplots()
    assert dls.show_batch(2, ax=given) is given


@pytest.mark.usefixtures("_close_figures")
def test_show_batch_of_other_iterables():
    ax = DataLoaders([items(5)]).show_batch(3)
    assert [text.get_text() for text in ax.texts] == ["0", "1", "2"]
    assert ax.images[0].get_array().max() == 0
    assert ax.images[2].get_array().min() == 255
    x, _ = items(3)
    for y, captions in (
        (torch.zeros(3, *x.shape[2:], dtype=torch.int64), []),
        (torch.zeros(3, 4), []),
        (torch.tensor([0.5, 1.0, 2.0]), ["0.5", "1", "2"]),
    ):
        ax = DataLoaders([(x, y)]).show_batch()
        assert [text.get_text() for text in ax.texts if text.get_text()] == captions


def test_pictures_where_the_normalization_is_not_known():
    to_uint8 = DataLoaders([items(3)]).to_uint8
    assert to_uint8(torch.tensor([-1.0, 0, 3]).view(3, 1, 1, 1)).ravel().tolist() == [0, 64, 255]
    assert to_uint8(torch.ones(2, 1, 3, 3)).max() == 0
    x = torch.tensor([0.0, 1.0, torch.nan, torch.inf, -torch.inf]).view(5, 1, 1, 1)
    assert to_uint8(x).ravel().tolist() == [0, 255, 0, 255, 0]
    assert to_uint8(torch.full((1, 3, 2, 2), torch.nan)).max() == 0
    two_channels = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).repeat(1, 1, 2, 2)
    assert to_uint8(two_channels).tolist() == [[[128, 128], [128, 128]]]
