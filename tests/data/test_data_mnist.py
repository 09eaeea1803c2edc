"""The embedded MNIST files, and what is said when they are damaged."""

from __future__ import annotations

import hashlib
import lzma

import pytest
import torch

from convlens.data import embedded, mnist
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
    # The known mean and deviation, labels and pixels.
    torch.testing.assert_close(digits.scale.mean / 255, torch.tensor([0.13066]), atol=1e-5, rtol=0)
    torch.testing.assert_close(digits.scale.std / 255, torch.tensor([0.30811]), atol=1e-5, rtol=0)
    x, y = next(iter(digits.valid))
    assert (x.shape, x.dtype, y.dtype) == ((512, 1, 28, 28), torch.float32, torch.int64)
    assert y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert int(digits.to_uint8(x)[0].sum()) == 18_454  # of the raw file
    labels = torch.cat([y for _, y in digits.train])
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(labels).tolist() == counts


def test_a_share_of_the_training_images_can_be_held_out():
    dls = mnist(device="cpu", validation=0.1, seed=3)
    assert (dls.train.n_items, dls.valid.n_items, dls.train.batch_size) == (54_000, 6_000, 64)
    for wrong, sentence in (
        ("train", r"validation must be 'test', for the 10,000 test images, .* got 'train'"),
        (1.5, r"valid must be a share between 0 and 1 .* of 60000 images on both sides, got 1\.5"),
    ):
        with pytest.raises(ArgumentError, match=sentence):
            mnist(validation=wrong)


def test_the_terms_lie_beside_the_data():
    notice = (embedded.FOLDER / "NOTICE").read_text(encoding="utf-8")
    names = ("Yann LeCun", "Corinna Cortes", "Burges", "CC BY-SA 3.0")
    for word in (*names, *embedded.SHA256.values()):
        assert word in notice


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
    name = "t10k-labels-idx1-ubyte"
    compressed = (embedded.FOLDER / f"{name}.xz").read_bytes()
    monkeypatch.setattr(embedded, "FOLDER", tmp_path)
    path = tmp_path / f"{name}.xz"
    with pytest.raises(DataError, match=r"ubyte\.xz cannot be read \(.+\); reinstall convlens"):
        embedded.read_idx(name)
    for damaged in (b"garbage", compressed[:-9]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"ubyte\.xz cannot be read \(.+\); reinstall convlens"):
            embedded.read_idx(name)
    raw = bytearray(lzma.decompress(compressed))
    raw[5_000] ^= 1
    path.write_bytes(lzma.compress(bytes(raw), preset=0))
    with pytest.raises(DataError) as caught:
        embedded.read_idx(name)
    assert str(caught.value) == (
        f"{path} is damaged: its contents have the SHA-256 {hashlib.sha256(raw).hexdigest()}, "
        f"expected {embedded.SHA256[name]}; reinstall convlens (pip install --force-reinstall "
        "convlens)."
    )
