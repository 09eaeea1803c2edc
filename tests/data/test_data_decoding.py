"""Image files of every kind as stored pixels, made here with Pillow; damaged ones are left out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import convlens as cl
from convlens.data.image_cache import decoded
from convlens.data.preprocessing import Preprocessing
from convlens.errors import ArgumentError, DataError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path_factory.mktemp("cache")))


def saved(folder, image: Image.Image, name: str, **options):
    path = folder / name
    image.save(path, **options)
    return path


def smooth(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 90)], 2).astype(np.uint8))


def many(folder, n: int):
    return [saved(folder, Image.fromarray(GREY), f"{i:03}.png") for i in range(n)]


def damaged(folder):
    """One file of each kind that a person finds in a folder."""
    cut = saved(folder, Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)), "cut.jpg")
    cut.write_bytes(cut.read_bytes()[:2000])
    empty, text = folder / "empty.png", folder / "text.jpg"
    empty.touch()
    text.write_text("no image")
    wrong = saved(folder, Image.fromarray(GREY), "wrong.png")
    data = bytearray(wrong.read_bytes())
    at = data.index(b"IDAT") + 4 + int.from_bytes(data[data.index(b"IDAT") - 4 :][:4])
    data[at] ^= 1  # of the checksum alone: Pillow reads the pixels without a word
    wrong.write_bytes(data)
    Image.open(wrong).load()
    return [cut, empty, text, wrong]


def test_damaged_files_are_left_out_with_their_reason_and_not_touched(tmp_path):
    bad = damaged(tmp_path)
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in bad]
    good = many(tmp_path, 396)
    files = [bad[0], *good[:200], *bad[1:], *good[200:]]
    for _ in range(2):  # decoded, then from the cache
        found = decoded(files, Preprocessing(None))
        why = {one.file: one.why for one in found.skipped}
        assert list(why) == list(map(str, bad))
        assert why[str(bad[0])].startswith("is a damaged image: ")
        assert why[str(bad[1])] == "is an empty file"
        assert why[str(bad[2])].startswith("is not an image that can be read; give one of BMP")
        assert why[str(bad[3])] == "is a damaged image: the checksum of its chunk IDAT is wrong"
        assert [files[i] for i in found.good] == good
        assert (found.pixels[found.good] == GREY).all()
    assert before == [(path.read_bytes(), path.stat().st_mtime_ns) for path in bad]


def test_too_many_damaged_files_are_refused_with_their_list(tmp_path):
    bad, good = damaged(tmp_path), many(tmp_path, 395)
    with pytest.raises(
        DataError, match="4 of 399 image files cannot be used, and at most 1 %"
    ) as e:
        decoded([*bad, *good], Preprocessing(None))
    assert f"  {bad[1]}: is an empty file\n" in str(e.value)
    with pytest.raises(DataError, match="1 of 396 image files cannot be used, and strict=True all"):
        decoded([bad[0], *good], Preprocessing(None), strict=True)
    for i in range(30):
        (tmp_path / f"e{i}.gif").touch()
    with pytest.raises(DataError, match=r"30 of 30 image files .*\n(.*\n){20}  and 10 more$"):
        decoded(sorted(tmp_path.glob("e*.gif")), Preprocessing((4, 4)))
    with pytest.raises(ArgumentError, match="files is empty; give at least one image file"):
        decoded([], Preprocessing((4, 4)))


def of_every_kind(folder):
    alpha = Image.fromarray(np.concatenate([COLOUR, GREY[..., None]], 2))
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    sixteen = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
    return [
        saved(folder, Image.fromarray(COLOUR), "turned.jpg", exif=turned, quality=95),
        saved(folder, Image.fromarray(COLOUR).convert("P"), "palette.png"),
        saved(folder, alpha, "alpha.png"),
        saved(folder, Image.fromarray(np.stack([GREY, GREY], 2), "LA"), "grey_alpha.png"),
        saved(folder, Image.fromarray(COLOUR).convert("CMYK"), "cmyk.jpg"),
        saved(folder, Image.fromarray(sixteen), "sixteen.png"),
        saved(folder, Image.fromarray(GREY > 127), "one_bit.png"),
        saved(folder, frames[0], "frames.gif", save_all=True, append_images=frames[1:]),
        saved(folder, Image.fromarray(COLOUR), "a.webp", lossless=True),
        saved(folder, Image.fromarray(COLOUR), "UPPER.PNG"),
        saved(folder, Image.fromarray(COLOUR), "UPPER.JPEG"),
    ]


def test_every_kind_is_converted_as_by_load_image(tmp_path):
    for path in of_every_kind(tmp_path):
        expected = (cl.load_image(path) * 255).round().numpy().astype(np.uint8)
        pixels = Preprocessing(None).read(path)
        np.testing.assert_array_equal(pixels, expected, err_msg=path.name)
        with Image.open(path) as opened:
            np.testing.assert_array_equal(Preprocessing(None).of(opened, "x"), expected)
        assert Preprocessing(None, channels=3).read(path).shape == (3, *expected.shape[1:])
        grey = Preprocessing(None, channels=1).read(path)
        if len(expected) == 3:
            expected = np.tensordot([0.299, 0.587, 0.114], expected.astype(float), 1)[None]
        assert np.abs(grey - expected.astype(float)).max() <= 2.5, path.name


def test_sizes_and_formats_are_the_files_own(tmp_path):
    paths = of_every_kind(tmp_path)
    found = decoded(paths, Preprocessing((4, 4)))
    assert found.pixels.shape == (len(paths), 3, 4, 4)
    assert found.sizes.tolist() == [[5, 7]] + [[7, 5]] * (len(paths) - 1)
    assert found.formats[:2] == ["JPEG", "PNG"]
    assert {"GIF", "WEBP"} < set(found.formats)
    assert found.hashes[-2] != found.hashes[-1]
    assert all(len(one) == 32 for one in found.hashes)
    big = saved(tmp_path, smooth(400, 300), "big.jpg")
    assert decoded([big], Preprocessing((16, 16))).sizes.tolist() == [[400, 300]]


def test_a_decompression_bomb_is_left_out(tmp_path):
    header = b"P5 9000 9000 255\n"
    (tmp_path / "a.ppm").write_bytes(header + bytes(100))
    with pytest.raises(DataError, match=r"a\.ppm: has 9,000×9,000 pixels; at most 64,000,000 are"):
        decoded([tmp_path / "a.ppm"], Preprocessing((4, 4)))


def test_channels_are_one_only_if_all_images_are_grey(tmp_path):
    grey = many(tmp_path, 5)
    colour = saved(tmp_path, Image.fromarray(COLOUR), "z.png")
    assert decoded(grey, Preprocessing((4, 4))).pixels.shape == (5, 1, 4, 4)
    for files in ([*grey, colour], [colour, *grey]):
        found = decoded(files, Preprocessing((5, 7)))
        assert (found.pixels.shape, found.preprocessing.channels) == ((6, 3, 5, 7), 3)
        np.testing.assert_array_equal(found.pixels[files.index(colour)], COLOUR.transpose(2, 0, 1))
    assert decoded([*grey, colour], Preprocessing((4, 4), channels=1)).pixels.shape[1] == 1


def test_without_a_size_all_images_must_have_one(tmp_path):
    grey = many(tmp_path, 3)
    assert decoded(grey, Preprocessing(None)).pixels.shape == (3, 1, 5, 7)
    other = saved(tmp_path, Image.new("L", (9, 4)), "z.png")
    with pytest.raises(
        DataError, match=r"widths go from 7 to 9 and their heights from 4 to 5 \(.*z"
    ):
        decoded([*grey, other], Preprocessing(None))


@pytest.mark.parametrize("shape", [(300, 100), (100, 300), (80, 80)])
def test_crop_squish_and_pad(tmp_path, shape):
    """Of a picture whose red grows from 0 on the left to 255 on the right."""
    path, (w, h) = saved(tmp_path, smooth(*shape), "a.png"), shape
    crop = Preprocessing((40, 40), "crop", 3).read(path).astype(float)
    squish = Preprocessing((40, 40), "squish", 3).read(path).astype(float)
    pad = Preprocessing((40, 40), "pad", 3).read(path).astype(float)
    assert crop.shape == squish.shape == pad.shape == (3, 40, 40)
    assert squish[0, 20, -1] - squish[0, 20, 0] > 245
    across, down = min(1, h / w), min(1, w / h)  # the share that is kept
    assert crop[0, 20, -1] - crop[0, 20, 0] == pytest.approx(255 * across, abs=8)
    assert crop[1, -1, 20] - crop[1, 0, 20] == pytest.approx(255 * down, abs=8)
    assert crop[0].mean() == pytest.approx(127, abs=2)
    inside = pad[2] > 45
    assert inside.sum() == pytest.approx(1600 * min(across, down), abs=40)
    assert (pad[:, ~inside] < 45).all()
    assert inside[20, 20]


@pytest.mark.parametrize("resize", ["crop", "squish", "pad"])
@pytest.mark.parametrize("shape", [(1, 1), (10_000, 10), (10, 10_000), (1, 50)])
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_tiny_and_very_long_images(tmp_path, resize, shape, name):
    path = saved(tmp_path, Image.new("RGB", shape, (200, 100, 50)), name)
    for channels in (1, 3):
        pixels = Preprocessing((28, 20), resize, channels).read(path)
        assert pixels.shape == (channels, 28, 20)
    middle = pixels[:, 13:15, 9:11].reshape(3, -1).max(1)
    assert np.abs(middle.astype(int) - (200, 100, 50)).max() <= 3


@pytest.mark.parametrize("resize", ["crop", "squish", "pad"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_small_without_being_seen(tmp_path, resize, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise = RNG.integers(0, 40, (600, 900, 3), dtype=np.uint8)
    image = Image.fromarray((np.asarray(smooth(900, 600)) // 2 + noise).astype(np.uint8))
    image = image.transpose(Image.Transpose.ROTATE_90) if orientation == 6 else image
    jpeg = saved(tmp_path, image, "a.jpg", exif=exif, quality=95)
    png = saved(tmp_path, image, "a.png", exif=exif)
    settings = Preprocessing((40, 60), resize, 3)
    difference = settings.read(jpeg).astype(int) - settings.read(png).astype(int)
    assert np.abs(difference).max() <= 6
    assert np.abs(difference).mean() < 1.5


def test_the_margin_is_stored_around_what_the_network_gets(tmp_path):
    settings = Preprocessing((224, 28), margin=1 / 0.875)
    assert settings.stored == (256, 32)
    path = saved(tmp_path, smooth(50, 60), "a.png")
    assert settings.read(path).shape == (3, 256, 32)
    assert Preprocessing(None, margin=2.0).stored is None


def test_settings_are_plain_json():
    settings = Preprocessing((20, 30), "pad", 1, 1.25)
    assert Preprocessing(**json.loads(json.dumps(settings.facts()))) == settings
    for wrong, sentence in (
        ({"size": 28}, r"size must be \(H, W\), whole numbers of at least 1, got 28"),
        ({"size": (0, 3)}, r"size must be \(H, W\), whole numbers of at least 1, got \(0, 3\)"),
        ({"size": None, "resize": "cut"}, "resize must be 'crop', 'squish' or 'pad', got 'cut'"),
        ({"size": None, "channels": 4}, "channels must be 1, 3 or None, got 4"),
        ({"size": None, "margin": 0.5}, "margin must be a number from 1 to 4, got 0.5"),
    ):
        with pytest.raises(ArgumentError, match=sentence):
            Preprocessing(**wrong)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ArgumentError, match="does not exist; give an image file"):
        Preprocessing((4, 4)).read(tmp_path / "nowhere.png")
