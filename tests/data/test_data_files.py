"""Image files of every kind as tensors, made here with Pillow."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from contextlib import suppress
from subprocess import CalledProcessError

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageOps

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
    with pytest.raises(ArgumentError, match="is not a file; give an image file"):
        cl.load_image(tmp_path)
    text = tmp_path / "a.txt"
    text.write_text("no image")
    with pytest.raises(DataError, match=r"a\.txt is not an image that can be read"):
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
    with pytest.raises(
        ArgumentError, match=r"size must be \(H, W\), whole numbers of at least 1, got \(0, 5\)"
    ):
        cl.load_image(path, size=(0, 5))


def chunk(kind: bytes, content: bytes) -> bytes:
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def png_of_zeros(path, width: int, height: int, *more: bytes):
    """A grey PNG, whose pixels take a thousandth of their number."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 1) * height), 9)
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def tiff_of_zeros(path, *tags: tuple[int, ...]):
    """A grey TIFF of 16×16 pixels with other tags: (tag, value), or (tag, value, kind)."""
    pixels = zlib.compress(bytes(9_000_000), 9)
    usual = [(256, 16), (257, 16), (258, 8), (259, 8), (262, 1), (277, 1)]
    chosen = {tag: (value, *kind) for tag, value, *kind in (*usual, *tags)}
    entries = [
        struct.pack("<HHII", tag, *(kind or [4]), 1, value)
        for tag, (value, *kind) in sorted(chosen.items())
    ]
    begin = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels
    path.write_bytes(begin + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4))
    return path


def test_more_pixels_than_is_safe_are_refused_by_what_the_header_says(tmp_path):
    with pytest.raises(DataError, match=r"a\.png has 8,001×8,000 pixels; at most 64,000,000 are"):
        cl.load_image(png_of_zeros(tmp_path / "a.png", 8001, 8000))
    frame = b"," + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0) + b"\x02\x02\x4c\x01\0;"
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    for name, content in {
        "a.ppm": b"P6 100000 100000 255\n",
        "a.bmp": b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 20000, 20000, 1, 24, *[0] * 6),
        "a.gif": screen + frame,
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            DataError, match=rf"a\.{name[2:]} has too many pixels to be read safely"
        ):
            cl.load_image(tmp_path / name)
    tile = [(322, 9000), (323, 9000), (324, 8), (325, 9000)]
    with pytest.raises(DataError, match=r"a\.tiff has 9,000×9,000 pixels; at most 64,000,000 are"):
        cl.load_image(tiff_of_zeros(tmp_path / "a.tiff", *tile))


def test_what_unpacks_to_far_more_is_refused(tmp_path):
    much = zlib.compress(bytes(50_000_000), 9)
    for kind, begin in ((b"iTXt", b"k\0\1\0\0\0"), (b"zTXt", b"k\0\0"), (b"iCCP", b"k\0\0")):
        path = png_of_zeros(tmp_path / "a.png", 4, 4, chunk(kind, begin + much))
        with pytest.raises(
            DataError, match=r"a\.png is a damaged image: (?i:decompressed data too l)"
        ):
            cl.load_image(path)
    texts = [chunk(b"zTXt", b"k%d\0\0" % i + zlib.compress(bytes(1_000_000), 9)) for i in range(70)]
    with pytest.raises(DataError, match=r"a\.png is a damaged image: Too much memory used in text"):
        cl.load_image(png_of_zeros(tmp_path / "a.png", 4, 4, *texts))
    for rows in ([(278, 2**32 - 1), (279, 2**32 - 1)], [(278, 9000), (279, 100)]):
        path = tiff_of_zeros(tmp_path / "a.tiff", (273, 2**32 - 1), *rows)
        with pytest.raises(DataError, match=r"a\.tiff is a damaged image: "):
            cl.load_image(path)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["a.eps", "a.png", "a.jpg"])
def test_no_image_runs_a_program(tmp_path, monkeypatch, name):
    """Pillow draws EPS with the first Ghostscript in PATH; this one leaves a mark."""
    mark, program = tmp_path / "mark", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {mark}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow looks for it once a process
    (tmp_path / name).write_bytes(EPS)
    with pytest.raises(
        DataError, match=rf"{name} is not an image that can be read; give one of BMP,"
    ):
        cl.load_image(tmp_path / name)
    assert not mark.exists()
    with Image.open(tmp_path / name) as opened, suppress(OSError, CalledProcessError):
        opened.load()
    assert mark.exists()  # so the mark would have been left


@pytest.mark.parametrize("kind", [2, 5, 7, 11])  # text, a fraction, bytes, a float
def test_a_tag_of_another_kind_is_a_sentence(tmp_path, kind):
    path = tiff_of_zeros(tmp_path / "a.tiff", (259, 1), (273, 8, kind), (279, 256))
    with warnings.catch_warnings(), pytest.raises(DataError, match=r"a\.tiff is a damaged image: "):
        warnings.simplefilter("ignore")  # what Pillow says of metadata
        cl.load_image(path)


def test_what_the_system_cannot_read_is_not_called_damaged():
    with pytest.raises(DataError, match=r"/proc/self/mem cannot be read \(Input/output error\)"):
        cl.load_image("/proc/self/mem")
    with pytest.raises(ArgumentError, match="x' does not exist; give an image file"):
        cl.load_image("x" * 300)
