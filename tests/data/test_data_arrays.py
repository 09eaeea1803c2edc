from __future__ import annotations

import numpy as np
import pytest
import torch

from convlens.data import from_arrays
from convlens.errors import ArgumentError
from convlens.execution.devices import pick_device

RNG = np.random.default_rng(7)
COLOUR = RNG.integers(0, 256, (30, 5, 4, 3), np.uint8)  # NHWC
LABELS = np.arange(30) % 3


def everything(batches):
    """All images and labels of one epoch, in order of the stored items."""
    x, y = zip(*batches, strict=True)
    return torch.cat(x), torch.cat(y)


def in_order(dls):
    """The stored training images, whatever the shuffling."""
    loader = dls.train
    indices = torch.argsort(loader._order(loader.epoch))
    x, _ = everything(loader)
    return x[indices]


def test_layouts_mean_what_they_say():
    nhwc = in_order(from_arrays(COLOUR, LABELS, layout="NHWC", device="cpu"))
    nchw = in_order(from_arrays(COLOUR.transpose(0, 3, 1, 2), LABELS, layout="NCHW", device="cpu"))
    assert tuple(nhwc.shape) == (30, 3, 5, 4)
    assert torch.equal(nhwc, nchw)
    grey = in_order(from_arrays(COLOUR[..., 0], LABELS, layout="NHW", device="cpu"))
    assert tuple(grey.shape) == (30, 1, 5, 4)
    torch.testing.assert_close(grey, nhwc[:, :1])
    dls = from_arrays(COLOUR[..., 0], LABELS, layout="NHW")
    np.testing.assert_array_equal(dls.to_uint8(in_order(dls)), COLOUR[..., 0])


def test_training_images_have_mean_0_and_deviation_1_per_channel():
    dls = from_arrays(COLOUR, LABELS, layout="NHWC", valid=0.2)
    x, _ = everything(dls.train)
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-6)
    assert torch.allclose(x.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-6)
    valid, _ = everything(dls.valid)
    assert valid.mean((0, 2, 3)).abs().min() > 1e-4, "the validation images have no say in it"
    x = in_order(from_arrays(COLOUR, LABELS, layout="NHWC"))
    raw = COLOUR.astype(np.float64) / 255
    expected = (raw - raw.mean((0, 1, 2))) / raw.std((0, 1, 2))
    np.testing.assert_allclose(x.numpy(), expected.transpose(0, 3, 1, 2), atol=2e-6)


def test_without_normalization_uint8_is_divided_by_255_and_floats_stay():
    x = in_order(from_arrays(COLOUR, LABELS, layout="NHWC", normalize=False))
    np.testing.assert_allclose(x.numpy(), COLOUR.transpose(0, 3, 1, 2) / np.float32(255), rtol=1e-6)
    floats = COLOUR[..., 0].astype(np.float64) - 100
    x = in_order(from_arrays(floats, LABELS, layout="NHW", normalize=False))
    np.testing.assert_array_equal(x[:, 0].numpy(), floats)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("convert", [lambda x: x, lambda x: x / 255.0, lambda x: x * 3.0 - 100])
def test_to_uint8_undoes_the_normalization(normalize, convert):
    images = COLOUR.copy()
    images[0, 0, 0], images[0, 0, 1] = 0, 255
    dls = from_arrays(convert(images), LABELS, layout="NHWC", normalize=normalize)
    pictures = dls.to_uint8(in_order(dls))
    assert pictures.dtype == np.uint8
    np.testing.assert_array_equal(pictures, images)
    back = dls.scale.from_uint8(torch.from_numpy(images).movedim(3, 1))
    torch.testing.assert_close(back, in_order(dls), atol=2e-6, rtol=2e-6)


def test_a_constant_channel_is_only_centred():
    images = COLOUR.copy()
    images[..., 1] = 9
    x = in_order(from_arrays(images, LABELS, layout="NHWC"))
    assert x[:, 1].abs().max() < 1e-6
    assert torch.isfinite(x).all()
    constant = from_arrays(np.full((4, 2, 2), 5.0), np.arange(4) % 2, layout="NHW")
    assert constant.to_uint8(in_order(constant)).max() == 0


def test_arrays_are_copied_and_may_be_read_only_reversed_or_of_foreign_byte_order():
    floats = COLOUR.astype(np.float32)
    before = floats.copy()
    dls = from_arrays(floats, LABELS, layout="NHWC")
    next(iter(dls.train))[0].zero_()
    np.testing.assert_array_equal(floats, before)
    tensor = torch.from_numpy(before.copy()).requires_grad_()
    from_tensor = from_arrays(tensor, torch.from_numpy(LABELS), layout="NHWC")
    assert not from_tensor.train.peek(1)[0].requires_grad
    assert torch.equal(in_order(from_tensor), in_order(dls))
    floats.flags.writeable = False
    odd = (floats, before[::-1][::-1], before.astype(">f4"))
    for images in odd:
        assert torch.equal(in_order(from_arrays(images, LABELS, layout="NHWC")), in_order(dls))
    reverse = in_order(from_arrays(before[::-1], LABELS[::-1], layout="NHWC"))
    torch.testing.assert_close(reverse.flip(0), in_order(dls))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.uint16, np.int64])
def test_integer_labels_of_any_kind_become_int64(dtype):
    dls = from_arrays(COLOUR, LABELS.astype(dtype), layout="NHWC")
    _, y = dls.train.peek(30)
    assert y.dtype == torch.int64
    assert sorted(y.tolist()) == sorted(LABELS.tolist())


def test_a_share_is_held_out_by_the_seed_and_nothing_is_lost():
    def halves(seed):
        x = np.arange(40, dtype=np.float32).repeat(4).reshape(40, 2, 2)
        dls = from_arrays(x, np.arange(40) % 2, layout="NHW", valid=0.3, seed=seed, normalize=False)
        return [
            sorted(everything(half)[0][:, 0, 0, 0].int().tolist())
            for half in (dls.train, dls.valid)
        ]

    train, valid = halves(0)
    assert (len(train), len(valid)) == (28, 12)
    assert sorted(train + valid) == list(range(40))
    assert halves(0) == [train, valid]
    assert halves(1)[1] != valid


def test_given_validation_images_are_kept_in_their_order():
    dls = from_arrays(
        COLOUR, LABELS, layout="NHWC", valid=(COLOUR[:7], LABELS[:7]), batch_size=3, drop_last=True
    )
    x, y = everything(dls.valid)
    assert y.tolist() == LABELS[:7].tolist()
    np.testing.assert_array_equal(dls.to_uint8(x), COLOUR[:7])
    assert from_arrays(COLOUR, LABELS, layout="NHWC").valid is None


def test_classes_are_the_labels_or_as_named():
    assert from_arrays(COLOUR, LABELS, layout="NHWC").classes == ("0", "1", "2")
    dls = from_arrays(COLOUR, LABELS, layout="NHWC", classes=["a", "b", "c", "d"])
    assert dls.classes == ("a", "b", "c", "d")
    assert (dls.label(1), dls.label(9)) == ("b", "9")


WRONG = [
    ({"layout": "HWC"}, r"layout must name the axes of x, 'NHW', 'NHWC' or 'NCHW', got 'HWC'"),
    (
        {"layout": "NHW"},
        r"x has shape \(30, 5, 4, 3\), which is 4 axes, but layout='NHW' has 3; re",
    ),
    ({"x": COLOUR[:0]}, r"x has shape \(0, 5, 4, 3\): it is empty; give at least one image"),
    ({"x": COLOUR.astype(int)}, r"x must be uint8 pixels from 0 to 255, or floats, got int64"),
    ({"x": [1, 2]}, r"x has shape \(2,\), which is 1 axes"),
    ({"x": []}, r"x has shape \(0,\), which is 1 axes"),
    ({"x": COLOUR.astype(object)}, r"x has dtype object, which torch does not know; convert it"),
    ({"x": {}}, r"x must be a NumPy array or a torch tensor, got dict"),
    ({"y": LABELS[:9]}, r"x has 30 images and y 9 labels; give one label for each image"),
    ({"y": LABELS * 1.0}, r"y must be integer labels from 0, got float64"),
    ({"y": LABELS > 1}, r"y must be integer labels from 0, got bool"),
    ({"y": np.eye(3, dtype=int)[LABELS]}, r"y must have one axis \(N,\).* got shape \(30, 3\); of"),
    ({"y": LABELS - 1}, r"y has labels from -1 to 1, but 3 different labels, so they must be 0 to"),
    (
        {"y": LABELS * 2},
        r"y has labels from 0 to 4, but 3 different labels, so they must be 0 to 2",
    ),
    ({"classes": ["a", "b"]}, r"y has labels from 0 to 2, but 2 classes are named, so labels go"),
    ({"classes": "cat"}, r"classes must be a list of names, got 'cat'"),
    ({"y": LABELS * 0}, r"y has only the label 0 among the 30 training images; classification"),
    ({"y": LABELS * 0, "classes": ["a", "b"]}, r"y has only the label 0 among the 30 training ima"),
    ({"x": np.where(COLOUR == 3, np.nan, COLOUR)}, r"x has \d+ pixels of 1800 that are NaN or inf"),
    ({"x": COLOUR * 1e300}, r"x has \d+ pixels of 1800 that are NaN or infinite as float32; rem"),
    ({"batch_size": 0}, r"batch_size must be a whole number of at least 1, got 0"),
    ({"batch_size": 2.5}, r"batch_size must be a whole number of at least 1, got 2\.5"),
    ({"seed": -3}, r"seed must be a whole number of at least 0, got -3"),
    ({"seed": None}, r"seed must be a whole number of at least 0, got None"),
    ({"seed": 2**64}, r"seed must be below 2\*\*64, got 18446744073709551616"),
    ({"device": "gpu"}, r"device='gpu' cannot be used here \(.*\); give 'cpu', 'cuda' or another"),
    ({"device": "meta"}, r"device='meta' cannot be used here \(.*\); give 'cpu', 'cuda'"),
    ({"valid": 1.0}, r"valid must be a share between 0 and 1 that leaves .* of 30 .* got 1\.0"),
    ({"valid": 0.01}, r"valid must be a share .* of 30 images on both sides, got 0\.01"),
    ({"valid": float("nan")}, r"valid must be a share .* of 30 images on both sides, got nan"),
    ({"valid": [1]}, r"valid must be a tuple \(x_valid, y_valid\), the share .* got list"),
    ({"valid": COLOUR[:5]}, r"valid must be a tuple \(x_valid, y_valid\), .* got ndarray"),
    ({"valid": (COLOUR[:5],)}, r"valid must be two things, \(x_valid, y_valid\), got 1"),
    ({"valid": (COLOUR[:5], LABELS[:4])}, r"valid\[0\] has 5 images and valid\[1\] 4 labels; give"),
    (
        {"valid": (COLOUR[:5, :4], LABELS[:5])},
        r"valid\[0\] has images of \(C, H, W\) = \(3, 4, 4\), but x has \(3, 5, 4\); give both in",
    ),
    (
        {"valid": (COLOUR[:5] / 255, LABELS[:5])},
        r"valid\[0\] has dtype float64, but x has uint8; uint8 and float pixels have different",
    ),
    (
        {"x": COLOUR / 255, "valid": (COLOUR[:5] * np.nan, LABELS[:5])},
        r"valid\[0\] has 300 pixels of 300 that are NaN or infinite",
    ),
    ({"valid": (COLOUR[:5], LABELS[:5] + 7)}, r"y has labels from 0 to 9, but 6 different labels"),
    (
        {"x": [COLOUR[0], COLOUR[1][:3]]},
        r"of different shape or dtype, such as \(3, 4, 3\), uint8 and \(5, 4, 3\), uint8; give",
    ),
    ({"x": [COLOUR[0], torch.zeros(5, 4, 3)]}, r"such as \(5, 4, 3\), float32 and \(5, 4, 3\), u"),
    ({"x": [COLOUR[0], "cat.png"]}, r"x\[1\] is of type str; .*cl.load_image reads an image file"),
    ({"y": ["cat", "dog"]}, r"y\[0\] is of type str; give arrays or tensors of numbers"),
    ({"x": [[[1.0, 2.0], [3.0]]]}, r"x is a list .* \(setting an array element with a sequ"),
]


@pytest.mark.parametrize(("change", "sentence"), WRONG, ids=[text[:40] for _, text in WRONG])
def test_a_bad_argument_gets_a_sentence(change, sentence):
    arguments = {"x": COLOUR, "y": LABELS, "layout": "NHWC", **change}
    with pytest.raises(ArgumentError, match=sentence):
        from_arrays(arguments.pop("x"), arguments.pop("y"), **arguments)


def test_the_device_is_cuda_where_there_is_one():
    assert pick_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == pick_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_said():
    with pytest.raises(
        ArgumentError, match=r"device='cuda' cannot be used here \(.*\); give 'cpu'"
    ):
        from_arrays(COLOUR, LABELS, layout="NHWC", device="cuda")


def test_lists_of_images_and_labels_are_taken_as_arrays():
    right = in_order(from_arrays(COLOUR, LABELS, layout="NHWC"))
    labels = LABELS.tolist()
    for images in (list(COLOUR), tuple(map(torch.from_numpy, COLOUR))):
        assert torch.equal(in_order(from_arrays(images, labels, layout="NHWC")), right)
    halves = (list(COLOUR[:5]), labels[:5])
    assert from_arrays(COLOUR, LABELS, layout="NHWC", valid=halves).valid.n_items == 5
