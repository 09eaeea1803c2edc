from __future__ import annotations

import hashlib
import lzma
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from convlens.data import embedded, mnist
from convlens.data.idx import parse_idx, read_idx_xz
from convlens.errors import ArgumentError, DataError


@pytest.fixture(scope="module")
def digits():
    return mnist(batch_size=512, device="cpu")


def test_mnist_is_all_there(digits):
    assert digits.facts() == {
        "name": "mnist",
        "n_train": 60_000,
        "n_valid": 10_000,
        "input_shape": [1, 28, 28],
        "classes": [str(digit) for digit in range(10)],
        "batch_size": 512,
    }
    assert (len(digits.train), len(digits.valid)) == (118, 20)
    assert digits.device == torch.device("cpu")


def test_the_known_mean_and_deviation_of_mnist(digits):
    torch.testing.assert_close(digits.scale.mean / 255, torch.tensor([0.13066]), atol=1e-5, rtol=0)
    torch.testing.assert_close(digits.scale.std / 255, torch.tensor([0.30811]), atol=1e-5, rtol=0)


def test_the_first_test_images_are_the_known_ones(digits):
    x, y = next(iter(digits.valid))
    assert (x.shape, x.dtype, y.dtype) == ((512, 1, 28, 28), torch.float32, torch.int64)
    assert y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert int(digits.to_uint8(x)[0].sum()) == 18_454  # of the raw file


def test_every_training_image_comes_once_per_epoch(digits):
    labels = torch.cat([y for _, y in digits.train])
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(labels).tolist() == counts


def test_a_share_of_the_training_images_can_be_held_out():
    dls = mnist(device="cpu", validation=0.1, seed=3)
    assert (dls.train.n_items, dls.valid.n_items, dls.train.batch_size) == (54_000, 6_000, 64)


def test_an_unknown_validation_is_refused():
    with pytest.raises(
        ArgumentError, match=r"validation='train' is not known; give 'test' for the"
    ):
        mnist(validation="train")
    with pytest.raises(ArgumentError, match=r"The share 1\.5 of 60000 images cannot be held out"):
        mnist(validation=1.5)


def test_the_terms_lie_beside_the_data():
    notice = (embedded.FOLDER / "NOTICE").read_text(encoding="utf-8")
    for word in (
        "Yann LeCun",
        "Corinna Cortes",
        "Burges",
        "CC BY-SA 3.0",
        *embedded.SHA256.values(),
    ):
        assert word in notice


# Files


def idx(shape=(2, 3), body=None, head=b"\0\0\x08"):
    header = head + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    return header + (bytes(range(6)) if body is None else body)


def write(folder: Path, raw: bytes):
    path = folder / "some-idx.xz"
    path.write_bytes(lzma.compress(raw))
    return path, hashlib.sha256(raw).hexdigest()


def test_an_idx_file_is_read(tmp_path):
    array = read_idx_xz(*write(tmp_path, idx()))
    np.testing.assert_array_equal(array, [[0, 1, 2], [3, 4, 5]])
    assert array.dtype == np.uint8


def test_a_changed_file_is_named_with_both_hashes(tmp_path):
    path, sha256 = write(tmp_path, idx())
    raw = idx(body=b"\0\1\2\3\4\6")
    path.write_bytes(lzma.compress(raw))
    found = hashlib.sha256(raw).hexdigest()
    with pytest.raises(DataError) as caught:
        read_idx_xz(path, sha256)
    assert str(caught.value) == (
        f"{path} is damaged: its contents have the SHA-256 {found}, expected {sha256}; reinstall "
        "convlens (pip install --force-reinstall convlens)."
    )


@pytest.mark.parametrize("damage", ["truncated", "garbage", "missing"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, damage):
    path, sha256 = write(tmp_path, idx())
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"garbage" if damage == "garbage" else path.read_bytes()[:-9])
    sentence = rf"some-idx\.xz cannot be read \(.+\); expected an xz file .* {sha256}; reinstall"
    with pytest.raises(DataError, match=sentence):
        read_idx_xz(path, sha256)


def test_a_damaged_embedded_file_stops_mnist(tmp_path, monkeypatch):
    for name in embedded.SHA256:
        (tmp_path / f"{name}.xz").write_bytes(lzma.compress(b"other"))
    monkeypatch.setattr(embedded, "FOLDER", tmp_path)
    with pytest.raises(
        DataError, match=r"train-images-idx3-ubyte\.xz is damaged: its contents have"
    ):
        mnist(device="cpu")


def test_one_changed_byte_in_a_copy_of_the_labels_is_found(tmp_path):
    name = "t10k-labels-idx1-ubyte"
    raw = bytearray(lzma.decompress((embedded.FOLDER / f"{name}.xz").read_bytes()))
    raw[5_000] ^= 1
    copy = tmp_path / f"{name}.xz"
    copy.write_bytes(lzma.compress(bytes(raw), preset=0))
    with pytest.raises(DataError, match=rf"{name}\.xz is damaged: .* expected ff7bcfd4\w+; reinst"):
        read_idx_xz(copy, embedded.SHA256[name])


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", r"file begins with the bytes \(none\); an IDX file of uint8"),
        (idx(head=b"\0\1\x08"), r"file begins with the bytes 00 01 08 02; an IDX file"),
        (idx(head=b"\0\0\x0d"), r"file begins with the bytes 00 00 0d 02; an IDX file"),
        (b"\0\0\x08\0", r"file begins with the bytes 00 00 08 00; an IDX file"),
        (b"\0\0\x08\3\0\0", r"file ends after 6 bytes, within its header of 16 bytes"),
        (
            idx(body=bytes(5)),
            r"file holds 5 bytes of values, but its header says the shape \(2, 3\)",
        ),
        (idx(body=bytes(7)), r"holds 7 bytes of values, .* which needs 6; reinstall"),
    ],
)
def test_a_wrong_idx_file_is_refused(raw, sentence):
    with pytest.raises(DataError, match=sentence):
        parse_idx(raw, "file")
