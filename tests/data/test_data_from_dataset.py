"""`from_dataset`: what datasets of torch and Hugging Face give, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, random_split

from convlens.data.from_dataset import from_dataset
from convlens.errors import ArgumentError


class Numbered(Dataset):
    """Item i is an image of i, and i."""

    classes = [str(i) for i in range(10)]  # noqa: RUF012

    def __init__(self, n=10):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if not 0 <= i < self.n:
            raise IndexError(i)
        return torch.full((1, 2, 3), float(i)), i


def order(batches):
    return torch.cat([y for _, y in batches]).tolist()


def one(x, y=0):
    """The first batch of a dataset of two equal items."""
    return next(iter(from_dataset([(x, y), (x, y)], device="cpu").train))


def test_a_dataset_of_torch():
    dls = from_dataset(Numbered(), Numbered(4), batch_size=4, device="cpu")
    assert (dls.name, dls.classes, dls.device.type) == ("Numbered", tuple("0123456789"), "cpu")
    x, y = next(iter(dls.train))
    assert (x.shape, x.dtype, y.dtype) == ((4, 1, 2, 3), torch.float32, torch.int64)
    assert torch.equal(x[:, 0, 0, 0], y.float())
    assert [len(y) for _, y in dls.train] == [4, 4, 2]
    assert order(dls.valid) == order(dls.valid) == [0, 1, 2, 3]
    assert (len(dls.train), dls.train.n_items, dls.train.input_shape) == (3, 10, (1, 2, 3))
    assert str(dls).split("\n")[1:] == [
        "  train: DatasetLoader, 3 batches",
        "  valid: DatasetLoader, 1 batch",
    ]


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    loaders = [from_dataset(Numbered(), seed=seed, device="cpu").train for seed in (3, 3, 4)]
    before = torch.get_rng_state()
    epochs = [order(loaders[0]) for _ in range(4)]
    assert torch.equal(torch.get_rng_state(), before)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    loaders[1].set_epoch(2)
    assert loaders[1].peek(3)[1].tolist() == epochs[2][:3]
    assert order(loaders[1]) == epochs[2]
    assert order(loaders[2]) != epochs[0]
    with pytest.raises(ArgumentError, match="epoch must be a whole number of at least 0"):
        loaders[0].set_epoch(-1)


def test_making_it_draws_no_random_numbers():
    class Random(Numbered):
        def __getitem__(self, i):
            return torch.rand(1, 2, 3) + float(np.random.rand()), i  # noqa: NPY002

    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    from_dataset(Random(), device="cpu").train.peek(3)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_each_item_has_a_source():
    dls = from_dataset(Numbered(3), Numbered(2), device="cpu", name="digits")
    assert dls.train.files == ["digits train[0]", "digits train[1]", "digits train[2]"]
    assert dls.valid.files == ["digits valid[0]", "digits valid[1]"]
    train, valid = random_split(Numbered(), [7, 3], torch.Generator().manual_seed(0))
    dls = from_dataset(train, Subset(valid, [2, 0]), device="cpu")
    assert dls.classes == tuple("0123456789")
    assert dls.train.files == [f"Numbered[{i}]" for i in train.indices]
    assert dls.valid.files == [f"Numbered[{i}]" for i in (valid.indices[2], valid.indices[0])]
    assert order(dls.valid) == [valid.indices[2], valid.indices[0]]


@pytest.mark.parametrize(
    ("image", "value"),
    [
        (Image.new("RGB", (4, 2), (255, 0, 51)), [1.0, 0.0, 0.2]),
        (Image.new("L", (4, 2), 51), [0.2]),
        (torch.full((1, 2, 4), 51, dtype=torch.uint8), [0.2]),
        (np.full((1, 2, 4), 51, np.uint8), [0.2]),
        (np.full((2, 4, 1), 51, np.uint8).transpose(2, 0, 1), [0.2]),
        (np.full((1, 2, 4), 7.5), [7.5]),
        (torch.full((3, 2, 4), -3.0, dtype=torch.float64), [-3.0] * 3),
    ],
)
def test_images(image, value):
    x, _ = one(image)
    assert (x.shape, x.dtype) == ((2, len(value), 2, 4), torch.float32)
    torch.testing.assert_close(x[0, :, 1, 3], torch.tensor(value))


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (3, torch.tensor([3, 3])),
        (np.int32(3), torch.tensor([3, 3])),
        (torch.tensor(3), torch.tensor([3, 3])),
        (True, torch.tensor([1, 1])),
        (0.5, torch.tensor([0.5, 0.5])),
        ([0.0, 1.0], torch.tensor([[0.0, 1.0]] * 2)),
        (np.array([1.0, 0.5]), torch.tensor([[1.0, 0.5]] * 2)),
        (Image.new("L", (2, 2), 7), torch.full((2, 2, 2), 7)),
        (Image.new("1", (2, 2), 1), torch.full((2, 2, 2), 1)),
        (torch.full((2, 2), 255, dtype=torch.uint8), torch.full((2, 2, 2), 255)),
    ],
)
def test_labels_and_masks(label, expected):
    _, y = one(torch.zeros(1, 2, 2), label)
    assert y.dtype == expected.dtype
    assert torch.equal(y, expected)


def test_a_picture_shows_what_is_known():
    dls = from_dataset([(Image.new("L", (2, 2), 51), 0)] * 2, device="cpu")
    assert (dls.to_uint8(next(iter(dls.train))[0]) == 51).all()
    assert dls.scale.is_known
    assert from_dataset([(torch.zeros(1, 2, 2), 0)], device="cpu").scale is None
    assert dls.show_batch(2).get_title() is not None


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (torch.zeros(1, 2, 2), r"^data train\[0\] is a Tensor; expected a pair \(image, label\)"),
        ((torch.zeros(1, 2, 2), 0, 0), r"is a tuple of length 3; expected a pair \(image, label\)"),
        ({"image": 0, "label": 1}, r"keys 'image', 'label'; say which are .*: columns=\('image'"),
        (("cat.jpg", 0), r"has an image of type str; expected a tensor or an array \(C, H, W\)"),
        ((torch.zeros(2, 2), 0), r"shape \(2, 2\); expected \(C, H, W\): of \(H, W\) make x\[None"),
        ((np.zeros((8, 8, 3)), 0), r"shape \(8, 8, 3\); .* of \(H, W, C\) x\.transpose\(2, 0, 1\)"),
        (
            (torch.zeros(1, 2, 2).int(), 0),
            r"an image of torch\.int32; expected uint8 from 0 to 255",
        ),
        (
            (torch.zeros(1, 2, 2), "cat"),
            "of type str; .* class_encode_column makes numbers of texts",
        ),
        (
            (torch.zeros(1, 2, 2), None),
            "label of type None; expected a number, an array of them, or",
        ),
        ((torch.zeros(1, 2, 2), {"boxes": []}), "label of type dict; expected a number, an array"),
        (
            (torch.zeros(1, 2, 2), Image.new("RGB", (2, 2))),
            "a mask of mode RGB; expected one number",
        ),
    ],
)
def test_items_that_are_no_pairs(item, message):
    with pytest.raises(ArgumentError, match=message):
        from_dataset([item] * 3, device="cpu")


def test_the_wrapper_that_is_shown_works():
    data = [(torch.zeros(1, 2, 2), 1, "a.jpg")] * 3
    with pytest.raises(ArgumentError) as caught:
        from_dataset(data, device="cpu")
    code = (
        re.search(r"class Pairs.+", str(caught.value))[0]
        .replace("; ", "\n    ")
        .replace("): ", "):\n    ", 1)
    )
    names = {"torch": torch, "data": data}
    exec(code, names)
    assert order(from_dataset(names["Pairs"](), device="cpu").train) == [1, 1, 1]


def test_images_of_different_sizes_are_named():
    data = [(Image.new("RGB", (4, 4)), 0)] * 5 + [(Image.new("L", (4, 4)), 1)]
    dls = from_dataset(data[:5], data, device="cpu", name="pets")
    with pytest.raises(ArgumentError) as caught:
        list(dls.valid)
    assert str(caught.value) == (
        "pets valid[5] has an image of shape (1, 4, 4), but pets valid[0] of (3, 4, 4); a batch "
        "needs one: resize and convert in the dataset, such as with "
        "image.convert('RGB').resize((64, 64))."
    )
    masks = [(torch.zeros(1, 2, 2), torch.zeros(2, n)) for n in (2, 3)]
    with pytest.raises(ArgumentError, match=r"has a label of shape \(2, .\), but data train\[.\]"):
        list(from_dataset(masks, device="cpu").train)


def test_dictionaries_with_named_columns():
    data = [{"pixels": torch.zeros(1, 2, 2), "kind": i, "id": "a"} for i in range(3)]
    dls = from_dataset(data, columns=("pixels", "kind"), device="cpu")
    assert sorted(order(dls.train)) == [0, 1, 2]
    with pytest.raises(ArgumentError, match=r"no column 'pixel', but .* Closest: 'pixels'"):
        from_dataset(data, columns=("pixel", "kind"), device="cpu")
    with pytest.raises(ArgumentError, match=r"columns must be two names, \(image, label\), got"):
        from_dataset(data, columns=("pixels",), device="cpu")


# Of Hugging Face's features only the names of their classes are looked at.
HFImage = type("Image", (), {})
Value = type("Value", (), {})


class ClassLabel:
    def __init__(self, names):
        self.names = names


class HFDataset:
    """What is used of a `datasets.Dataset`."""

    builder_name = "beans"

    def __init__(self, columns, **features):
        self.columns, self.features = columns, features

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, i):
        return {name: values[i] for name, values in self.columns.items()}

    def __iter__(self):
        return (self[i] for i in range(len(self)))


def beans(**more):
    images = [Image.new("L", (2, 2), i) for i in range(4)]
    columns = {"path": ["a"] * 4, "img": images, "kind": [0, 1, 0, 1]}
    features = {"path": Value(), "img": HFImage(), "kind": ClassLabel(["rust", "healthy"])}
    return HFDataset(columns, **{**features, **more})


def test_a_dataset_of_hugging_face():
    dls = from_dataset(beans(), batch_size=3, device="cpu")
    assert (dls.name, dls.classes) == ("beans", ("rust", "healthy"))
    assert dls.train.files[2] == "beans train[2]"
    assert sorted(order(dls.train)) == [0, 0, 1, 1]


def test_columns_that_are_not_certain():
    with pytest.raises(ArgumentError) as caught:
        from_dataset(beans(fine=ClassLabel(["a"])), device="cpu")
    assert str(caught.value) == (
        "train has the columns 'path' (Value), 'img' (Image), 'kind' (ClassLabel), 'fine' "
        "(ClassLabel); which are the image and the label is not certain, so name them: "
        "columns=('image', 'label')."
    )
    named = from_dataset(beans(fine=ClassLabel(["a"])), columns=("img", "kind"), device="cpu")
    assert named.classes == ("rust", "healthy")


def test_several_splits_are_refused():
    with pytest.raises(ArgumentError, match=r"keys 'train', 'test'; give .* train=data\['train'\]"):
        from_dataset({"train": beans(), "test": beans()}, device="cpu")


def test_the_real_library():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    images = [Image.new("RGB", (4, 2), (i, 0, 0)) for i in range(6)]
    data = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 3}, features)
    splits = data.train_test_split(2, seed=0)
    dls = from_dataset(splits["train"], splits["test"], batch_size=4, device="cpu")
    assert dls.classes == ("cat", "dog")
    assert [tuple(x.shape) for x, _ in (*dls.train, *dls.valid)] == [(4, 3, 2, 4), (2, 3, 2, 4)]
    x, _ = next(iter(from_dataset(data.with_format("torch"), device="cpu").train))
    assert sorted((x[:, 0, 0, 0] * 255).round().tolist()) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ArgumentError, match="iterated goes into a DataLoader, got IterableDataset"):
        from_dataset(data.to_iterable_dataset(), device="cpu")
    with pytest.raises(ArgumentError, match="keys 'train', 'test'"):
        from_dataset(splits, device="cpu")


def test_a_ready_loader_is_taken_as_it_is():
    loader = DataLoader(Numbered(), batch_size=5)
    dls = from_dataset(loader, loader, batch_size=3, device="cpu")
    assert dls.train is dls.valid is loader
    assert (dls.name, dls.classes) == ("Numbered", tuple("0123456789"))
    three = DataLoader([(torch.zeros(1, 2, 2), 0, 0)] * 2)
    with pytest.raises(ArgumentError, match=r"length 3; .* A DataLoader's collate_fn, or a small"):
        from_dataset(three, device="cpu").show_batch()


class Stream(IterableDataset):
    def __iter__(self):
        return (Numbered()[i] for i in range(5))


@pytest.mark.parametrize("train", ["photos", 3, iter([]), Stream(), {1, 2}.__len__])
def test_what_is_no_dataset(train):
    with pytest.raises(ArgumentError, match="train must be a dataset with __len__ and __getitem__"):
        from_dataset(train, device="cpu")


def test_a_stream_goes_into_a_loader():
    with pytest.raises(ArgumentError, match="can only be iterated goes into a DataLoader, got Str"):
        from_dataset(Stream(), device="cpu")
    dls = from_dataset(DataLoader(Stream(), batch_size=2), device="cpu")
    assert [order(dls.train) for _ in range(2)] == [[0, 1, 2, 3, 4]] * 2


def test_other_arguments_are_checked():
    with pytest.raises(ArgumentError, match="valid is empty; give at least one item"):
        from_dataset(Numbered(), [], device="cpu")
    with pytest.raises(ArgumentError, match="batch_size must be a whole number of at least 1"):
        from_dataset(Numbered(), batch_size=0)
    with pytest.raises(ArgumentError, match="seed must be a whole number of at least 0"):
        from_dataset(Numbered(), seed=-1)
    with pytest.raises(ArgumentError, match="classes must be a list of names, got 'cat'"):
        from_dataset(Numbered(), classes="cat", device="cpu")
    other = Numbered()
    other.classes = ["a", "b"]
    with pytest.raises(
        ArgumentError, match=r"train has the classes 0, 1, .*, but valid a, b; give"
    ):
        from_dataset(Numbered(), other, device="cpu")
    assert from_dataset(Numbered(), other, classes=["x"], device="cpu").classes == ("x",)


def test_a_dataset_of_torchvision():
    datasets = pytest.importorskip("torchvision.datasets")
    dls = from_dataset(datasets.FakeData(5, (3, 8, 8)), batch_size=5, device="cpu")
    assert next(iter(dls.train))[0].shape == (5, 3, 8, 8)
    assert dls.name == "FakeData"
