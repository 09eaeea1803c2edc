"""What `predict` takes: images in any form, each normalized as the training images were."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convlens as cl
from convlens.data import PixelScale

N = 40
LABELS = np.arange(N) % 3


def pixels(channels=1):
    """(N, 12, 12) or (N, 12, 12, 3) uint8, not the same everywhere."""
    shape = (N, 12, 12) if channels == 1 else (N, 12, 12, channels)
    return np.random.default_rng(0).integers(0, 200, shape, dtype=np.uint8)


def made(images, **kwargs):
    """A Learner whose answers differ from image to image, and its validation images."""
    layout = "NHW" if images.ndim == 3 else "NHWC"
    dls = cl.from_arrays(images, LABELS, layout=layout, valid=(images, LABELS), **kwargs)
    torch.manual_seed(0)
    n_in = 1 if images.ndim == 3 else images.shape[3]
    model = nn.Sequential(nn.Conv2d(n_in, 4, 3), nn.Flatten(), nn.Linear(400, 3))
    learn = cl.Learner(dls, model, run=None, progress=False)
    plain = torch.cat([x for x, _ in dls.valid])
    return learn, learn.predict(plain, normalized=True).probabilities


@pytest.fixture
def files(tmp_path):
    """Files of the pixels, grey and in colour."""
    found = {}
    for channels in (1, 3):
        found[channels] = [tmp_path / f"{channels}-{i}.png" for i in range(N)]
        for path, image in zip(found[channels], pixels(channels), strict=True):
            Image.fromarray(image).save(path)
    return found


def pillow(path):
    with Image.open(path) as image:
        return image.copy()


TRAINED_ON = {
    "uint8": lambda x: x,
    "floats to 1": lambda x: (x / 255).astype(np.float32),
    "floats to 255": lambda x: np.where(x > 198, 255, x).astype(np.float32),
    "not normalized": lambda x: x,
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", TRAINED_ON)
def test_every_form_of_an_image_gives_the_answer_of_the_loader(files, kind, channels):
    convert = TRAINED_ON[kind]
    images = pixels(channels)
    images = np.where(images > 198, 255, images).astype(np.uint8)
    for path, image in zip(files[channels], images, strict=True):
        Image.fromarray(image).save(path)
    learn, right = made(convert(images), normalize=kind != "not normalized")
    assert right.std(dim=0).min() > 0.01
    paths = files[channels]
    loaded = [cl.load_image(path) for path in paths]
    raw = np.moveaxis(images, -1, 1) if channels == 3 else images[:, None]
    forms = {
        "without a channel axis": images if channels == 1 else raw,
        "paths": paths,
        "texts": tuple(map(str, paths)),
        "Pillow": [pillow(path) for path in paths],
        "load_image": loaded,
        "stacked": torch.stack(loaded),
        "uint8": raw,
        "uint8 list": list(torch.from_numpy(raw)),
        "floats to 255": raw.astype(np.float64),
    }
    for name, x in forms.items():
        for normalized in (None, False):
            said = learn.predict(x, batch_size=16, normalized=normalized)
            torch.testing.assert_close(said.probabilities, right, msg=name)
    for one in (paths[3], str(paths[3]), pillow(paths[3]), loaded[3], raw[3]):
        torch.testing.assert_close(learn.predict(one).probabilities, right[3:4])


def test_files_are_brought_to_the_channels_and_the_size_of_the_training_images(files, tmp_path):
    grey, right = made(pixels())
    pillow(files[1][0]).convert("RGB").save(tmp_path / "colour.png")
    large = pillow(files[1][0]).resize((48, 40))
    large.save(tmp_path / "large.png")
    said = grey.predict([tmp_path / "colour.png", large, tmp_path / "large.png"])
    torch.testing.assert_close(said.probabilities[:1], right[:1])
    small = grey.predict(cl.load_image(tmp_path / "large.png", size=(12, 12))).probabilities
    torch.testing.assert_close(said.probabilities[1:], small.expand(2, 3), atol=1e-3, rtol=0)
    tensors = [cl.load_image(tmp_path / "large.png"), torch.from_numpy(pixels()[:1]) / 255]
    for x in (tensors, iter(tensors), (255 * tensors[0], tensors[1] * 255)):  # scaled as files are
        assert torch.equal(grey.predict(x).probabilities, said.probabilities[[2, 0]])
    colour, _ = made(pixels(3))
    as_grey = np.repeat(pixels()[:1, None], 3, axis=1)
    torch.testing.assert_close(
        colour.predict(files[1][0]).probabilities, colour.predict(as_grey).probabilities
    )
    red = np.zeros((12, 12, 3), np.uint8)
    red[..., 0] = 255
    luminance = np.full((1, 1, 12, 12), 76, np.uint8)  # 0.299 · 255
    torch.testing.assert_close(
        grey.predict(Image.fromarray(red)).probabilities,
        grey.predict(luminance).probabilities,
        atol=1e-2,
        rtol=0,
    )


def test_labels_names_and_one_image():
    learn, right = made(pixels())
    said = learn.predict(pixels()[:, None], batch_size=16)
    torch.testing.assert_close(said.probabilities.sum(dim=1), torch.ones(N))
    assert said.labels.tolist() == right.argmax(1).tolist()
    assert said.names == tuple(str(label) for label in said.labels.tolist())
    assert repr(said).startswith(f"Prediction(40 images: {said.names[0]} ")
    assert len(repr(said)) < 100


def test_floats_that_are_no_pixels_are_refused():
    learn, _ = made(pixels())
    x, _ = next(iter(learn.dls.valid))
    with pytest.raises(cl.ArgumentError, match=r"x is floats from -.* say normalized=True"):
        learn.predict(x)
    bright = x.clamp(min=0)  # normalized, without a dark pixel: as pixels it would be black
    with pytest.raises(cl.ArgumentError, match=r"x is floats from 0 to 1\.\d+; pixels go from 0"):
        learn.predict(bright)
    with pytest.raises(cl.ArgumentError, match=r"x is floats from nan to nan"):
        learn.predict(torch.full((1, 12, 12), torch.nan))


def test_training_images_in_units_of_their_own():
    units = pixels().astype(np.float32) / 10 - 5
    learn, right = made(units)
    said = learn.predict(units[:, None], normalized=False)
    torch.testing.assert_close(said.probabilities, right)
    for x in (units[:, None], pixels()[:, None], Image.fromarray(pixels()[0])):
        with pytest.raises(
            cl.ArgumentError, match=r"were floats from -5 to 14.9, so black and white are"
        ):
            learn.predict(x)
    with pytest.raises(cl.ArgumentError, match=r"x is uint8 pixels, but the training images were"):
        learn.predict(pixels()[:, None], normalized=False)


def test_a_loader_of_ones_own_says_how_it_normalizes_or_gives_the_images(files):
    raw = torch.from_numpy(pixels()[:, None]) / 255
    batches = [((raw - 0.4) / 0.2, torch.from_numpy(LABELS))]
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    learn = cl.Learner(cl.DataLoaders(batches), model, run=None, progress=False)
    right = learn.predict(batches[0][0], normalized=True).probabilities
    for x in (raw, raw.numpy(), pixels()[:, None], files[1], pillow(files[1][0])):
        for normalized in (None, False):
            with pytest.raises(cl.ArgumentError, match=r"came from a loader of your own. Give ten"):
                learn.predict(x, normalized=normalized)
    scale = PixelScale(torch.tensor([0.4]), torch.tensor([0.2]), 0.0, 1.0)
    known = cl.Learner(cl.DataLoaders(batches, scale=scale), model, run=None, progress=False)
    for x in (raw, pixels()[:, None], files[1]):
        torch.testing.assert_close(known.predict(x).probabilities, right)
    with pytest.raises(cl.ArgumentError, match=r"different shapes .* \(1, 9, 9\) and \(1, 12"):
        known.predict([files[1][0], pillow(files[1][0]).resize((9, 9))])


def test_files_for_a_model_of_other_channels_than_grey_and_colour(files):
    learn, _ = made(np.zeros((N, 12, 12, 4), np.uint8))
    with pytest.raises(cl.ArgumentError, match=r"one channel or three; the model was trained on C"):
        learn.predict(files[1])


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (3, r"x must be image files, folders, Pillow images, or a tensor or array .*got int"),
        ([1, 2], r"x must be image files, .* got shape \(2,\)"),
        ([], r"x must be image files, .* got shape \(0,\)"),
        (torch.zeros(12, 12), r"x must be image files, .* got shape \(12, 12\)"),
        (torch.zeros(0, 1, 12, 12), r"x has shape \(0, 1, 12, 12\): it is empty"),
        (torch.zeros(2, 3, 12, 12), r"\(2, 3, 12, 12\); the model was trained on C = 1\.$"),
        (np.zeros((2, 12, 12, 1), np.uint8), r"C = 1. If channels are its last axis, give x.mov"),
        (np.zeros((1, 12, 12), np.int64), r"x must be uint8 pixels .*, or floats, got int64"),
        (np.zeros((1, 12, 12), object), r"x must be image files.* x has dtype object"),
        (
            [torch.zeros(1, 12, 12), torch.zeros(1, 9, 9, dtype=torch.uint8)],
            r"x is a list of arrays of float32 and uint8; give one dtype",
        ),
        (iter([]), r"x must be image files, .* x gives nothing"),
        (iter([torch.zeros(2, 1, 12, 12)]), r"generator of items of shape \(2, 1, 12, 12\); each"),
        (iter([3]), r"generator of items of int; each must be an image file"),
        (iter(["a.png", 3]), r"x\[1\] is of type int, but x\[0\] is an image file"),
        (
            iter([torch.zeros(1, 12, 12)] * 2 + [torch.full((1, 12, 12), 255.0)] * 2),
            r"x gives images of different dtype or range from one to the other",
        ),
        (
            [np.zeros((1, 12, 12), np.uint8), torch.zeros(1, 12, 12)],
            r"different shape or dtype, such as \(1, 12, 12\), float32 and \(1, 12, 12\), uint8",
        ),
        ([torch.zeros(1, 12, 12), "a.png"], r"x must be image files, .* x\[1\] is of type str"),
        ("no-such.png", r"path='no-such.png' does not exist"),
    ],
)
def test_what_is_no_images(x, sentence):
    learn, _ = made(pixels())
    with pytest.raises(cl.ArgumentError, match=sentence):
        learn.predict(x, batch_size=2)


def test_arguments_that_cannot_work(files):
    learn, _ = made(pixels())
    with pytest.raises(
        cl.ArgumentError, match=r"batch_size must be a whole number of at least 1, got 0"
    ):
        learn.predict(pixels()[:, None], batch_size=0)
    with pytest.raises(cl.ArgumentError, match=r"normalized=True, but x is uint8"):
        learn.predict(pixels()[:, None], normalized=True)
    with pytest.raises(cl.ArgumentError, match=r"normalized=True is for tensors, but x is image f"):
        learn.predict(files[1], normalized=True)
    (files[1][0]).write_bytes(b"\x89PNG\r\n\x1a\nand nothing more")
    with pytest.raises(cl.DataError, match=r"1-0.png is"):
        learn.predict(files[1])


def test_outputs_from_which_no_class_can_be_read():
    learn, _ = made(pixels())
    x = pixels()[:2, None]
    for n, found in ((12, r"\(2, 12\)"), (1, r"\(2, 1\)")):
        learn.model = nn.Sequential(nn.Flatten(), nn.Linear(144, n))
        with pytest.raises(
            cl.TrainingError, match=rf"predict needs an output of scores \(N.* {found}, float32"
        ):
            learn.predict(x)
    learn.model = nn.Sequential(nn.Conv2d(1, 3, 3))
    with pytest.raises(cl.TrainingError, match=r"output is of shape \(2, 3, 10, 10\)"):
        learn.predict(x)
    learn.model = nn.Sequential(nn.Flatten(), nn.Linear(100, 3))
    with pytest.raises(cl.TrainingError, match=r"Layer '1' \(Linear\) takes 100 features, but its"):
        learn.predict(x)
