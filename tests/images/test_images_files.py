"""Image files of every kind as tensors, made here with Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import convlens as cl
from convlens.errors import ArgumentError, DataError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def saved(tmp_path, image: Image.Image, name: str = "image.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def same(image: torch.Tensor, pixels) -> bool:
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return image.shape == planes.shape and np.allclose(image, planes / 255, atol=1e-6)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.webp"])
def test_grey_and_colour(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    colour = cl.load_image(saved(tmp_path, Image.fromarray(COLOUR), name, **options))
    assert (colour.shape, colour.dtype) == ((3, 5, 7), torch.float32)
    assert same(colour, COLOUR)
    if not options:  # WebP knows no grey
        grey = cl.load_image(str(saved(tmp_path, Image.fromarray(GREY), name)))
        assert grey.shape == (1, 5, 7)
        assert same(grey, GREY)


def test_black_is_0_and_white_is_1_in_one_bit(tmp_path):
    image = cl.load_image(saved(tmp_path, Image.fromarray(GREY > 127)))
    assert torch.equal(image[0], torch.from_numpy((GREY > 127).astype(np.float32)))


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_grey_of_sixteen_bits_keeps_them_all(tmp_path, name):
    values = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
    values[0, :2] = 0, 65535
    image = cl.load_image(saved(tmp_path, Image.fromarray(values), name))
    assert image.shape == (1, 5, 7)
    assert np.array_equal((image[0].double() * 65535).round().numpy(), values)


def test_palettes_have_their_colours(tmp_path):
    few = COLOUR // 128 * 255
    indexed = Image.fromarray(few.astype(np.uint8)).convert("P", palette=Image.Palette.ADAPTIVE)
    image = cl.load_image(saved(tmp_path, indexed))
    assert image.shape == (3, 5, 7)
    assert same(image, np.asarray(indexed.convert("RGB")))


def test_what_is_transparent_lies_on_white(tmp_path):
    alpha = np.zeros((5, 7, 1), np.uint8)
    alpha[:2] = 255
    alpha[2] = 128
    image = cl.load_image(saved(tmp_path, Image.fromarray(np.concatenate([COLOUR, alpha], 2))))
    assert same(image[:, :2], COLOUR[:2])
    assert (image[:, 3:] == 1).all()
    half = COLOUR[2] / 255 * 128 / 255 + 127 / 255
    assert np.allclose(image[:, 2].numpy().T, half, atol=1 / 255)
    grey = np.concatenate([GREY[..., None], alpha], 2)
    image = cl.load_image(saved(tmp_path, Image.fromarray(grey, "LA")))
    assert image.shape == (1, 5, 7)
    assert same(image[:, :2], GREY[:2])
    assert (image[:, 3:] == 1).all()


def test_a_transparent_entry_of_a_palette(tmp_path):
    indexed = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    indexed.putpalette([10, 20, 30, 40, 50, 60])
    image = cl.load_image(saved(tmp_path, indexed, "a.png", transparency=0))
    assert same(image, np.array([[[255, 255, 255], [40, 50, 60]]], np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_stands_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(COLOUR), "a.png", exif=exif)
    image = cl.load_image(path)
    assert image.shape == ((3, 5, 7) if orientation < 5 else (3, 7, 5))
    with Image.open(path) as opened:
        assert same(image, np.asarray(ImageOps.exif_transpose(opened)))
    assert same(image, COLOUR) == (orientation == 1)


def test_other_colour_spaces_become_red_green_blue(tmp_path):
    image = cl.load_image(saved(tmp_path, Image.new("CMYK", (4, 3), (0, 255, 255, 0)), "a.jpg"))
    assert image.shape == (3, 3, 4)
    assert image[0].min() > 0.9
    assert image[1:].max() < 0.1


def test_the_first_picture_of_several(tmp_path):
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    path = saved(tmp_path, frames[0], "a.tiff", save_all=True, append_images=frames[1:])
    assert same(cl.load_image(path), GREY)


def test_another_size(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (40, 20), (255, 0, 102)))
    image = cl.load_image(path, size=(10, 30))
    assert image.shape == (3, 10, 30)
    assert torch.allclose(image[:, 3, 3], torch.tensor([1.0, 0.0, 0.4]), atol=1e-5)


def test_what_is_no_image_gets_a_sentence(tmp_path):
    with pytest.raises(ArgumentError, match=r"path='.*nowhere.png' does not exist; give an image"):
        cl.load_image(tmp_path / "nowhere.png")
    with pytest.raises(ArgumentError, match="is a folder; give an image file"):
        cl.load_image(tmp_path)
    text = tmp_path / "a.txt"
    text.write_text("no image")
    with pytest.raises(DataError, match=r"a\.txt is no image that can be read"):
        cl.load_image(text)
    path = saved(tmp_path, Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"image\.png is a damaged image: "):
        cl.load_image(path)
    path = saved(tmp_path, Image.fromarray(np.zeros((2, 2), np.float32)), "f.tiff")
    with pytest.raises(DataError, match=r"f\.tiff holds floating point numbers, whose white is"):
        cl.load_image(path)
    path = saved(tmp_path, Image.fromarray(np.full((2, 2), 70_000, np.int32)), "i.tiff")
    with pytest.raises(DataError, match="holds whole numbers from 70000 to 70000, whose white is"):
        cl.load_image(path)
    path = saved(tmp_path, Image.fromarray(GREY))
    with pytest.raises(ArgumentError, match=r"size=\(0, 5\) is no size of an image; give \(H, W\)"):
        cl.load_image(path, size=(0, 5))


def test_more_pixels_than_is_safe_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(DataError, match="has too many pixels to be read safely"):
        cl.load_image(saved(tmp_path, Image.fromarray(GREY)))
