"""Data sets by name: small files in their formats, from a server of the test's own."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from convlens.data import named, named_files, named_sources
from convlens.data.idx_files import idx_array
from convlens.data.named import dataset
from convlens.data.named_files import Files, photograph_folder
from convlens.data.named_sources import RemoteFile
from convlens.data.pickled_arrays import read_pickle
from convlens.errors import ArgumentError, DataError

PHOTO = b"not decoded here"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("CONVLENS_DATA", str(folder))
    return folder


def idx(array):
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def text(words):
    raw = words.encode("latin-1") if isinstance(words, str) else words
    return (
        b"U" + bytes([len(raw)]) + raw
        if len(raw) < 256
        else b"T" + struct.pack("<I", len(raw)) + raw
    )


def number(n):
    return b"K" + bytes([n]) if n < 256 else b"J" + struct.pack("<i", n)


def batch(x, y, key="labels", dtype="u1"):
    """A dictionary as Python 2 pickled CIFAR's: protocol 2, arrays by NumPy's `_reconstruct`."""
    name = text("a name") + b"q\x00"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02"
        + (number(0) + b"\x85" + text("b") + b"\x87R(" + number(1))
        + (number(len(x)) + number(x.shape[1]) + b"\x86cnumpy\ndtype\n" + text(dtype))
        + (number(0) + number(1) + b"\x87R(" + number(3) + text("|") + b"NNNJ\xff\xff\xff\xff")
        + (
            b"J\xff\xff\xff\xff"
            + number(0)
            + b"tb\x89"
            + text(x.tobytes())
            + b"tbr\x00\x01\x00\x00"
        )
    )
    labels = b"]q\x03(" + b"".join(map(number, y)) + b"e"
    files = b"](" + name + b"h\x00" * (len(y) - 1) + b"e"
    items = text("batch_label") + text("one") + text(key) + labels + text("data") + array
    return b"\x80\x02}q\x04(" + items + text("filenames") + files + b"u."


def packed(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content
                tar.addfile(info)
    return stream.getvalue()


def random_images(n, classes, *shape):
    numbers = np.random.default_rng(n)
    return numbers.integers(0, 256, (n, *shape), np.uint8), np.arange(n) % classes


def use(monkeypatch, name, files, server=None):
    """Let a data set have other files, on the test's server."""
    remote = tuple(
        RemoteFile(
            server.serve(file, content) if server else f"https://a.example/{file}",
            hashlib.md5(content).hexdigest(),
        )
        for file, content in files.items()
    )
    source = replace(named_sources.SOURCES[name], files=remote)
    monkeypatch.setattr(named, "SOURCES", {**named_sources.SOURCES, name: source})


@pytest.fixture
def fashion():
    (x, y), (x_test, y_test) = random_images(40, 10, 28, 28), random_images(20, 10, 28, 28)
    return {
        "train-images-idx3-ubyte": idx(x),
        "train-labels-idx1-ubyte": idx(y.astype(np.uint8)),
        "t10k-images-idx3-ubyte": idx(x_test),
        "t10k-labels-idx1-ubyte": idx(y_test.astype(np.uint8)),
    }


def zipped(files):
    return {f"{name}.gz": gzip.compress(content) for name, content in files.items()}


@pytest.fixture
def cifar10():
    files = {f"data_batch_{i}": random_images(10 + i, 10, 3072) for i in range(1, 6)}
    files["test_batch"] = random_images(300, 10, 3072)  # more than one byte counts
    return files


def raw_batches(files, key="labels"):
    return {name: batch(*images, key) for name, images in files.items()}


def pixels(loader):
    return torch.cat([x for x, _ in loader]), torch.cat([y for _, y in loader])


def test_fashion_mnist_is_downloaded_once(server, monkeypatch, fashion, cache):
    use(monkeypatch, "fashion-mnist", zipped(fashion), server)
    dls = dataset("fashion-mnist", batch_size=8, device="cpu")
    assert dls.facts() | {"classes": None} == {
        "name": "fashion-mnist",
        "n_train": 40,
        "n_valid": 20,
        "input_shape": [1, 28, 28],
        "classes": None,
        "batch_size": 8,
    }
    assert dls.classes[:2] == ("T-shirt/top", "Trouser")
    x, y = pixels(dls.valid)
    expected, labels = random_images(20, 10, 28, 28)
    assert (dls.to_uint8(x) == expected).all()
    assert y.tolist() == labels.tolist()
    assert sorted(file.name for file in (cache / "fashion-mnist").iterdir()) == sorted(
        zipped(fashion)
    )
    dataset("fashion-mnist", device="cpu")
    assert len(server.asked) == 4


@pytest.mark.parametrize("place", ["", "FashionMNIST/raw"])  # the second is torchvision's
@pytest.mark.parametrize("packs", [zipped, dict])
def test_files_of_fashion_mnist_in_a_folder(tmp_path, monkeypatch, fashion, place, packs):
    use(monkeypatch, "fashion-mnist", zipped(fashion))
    (tmp_path / "own" / place).mkdir(parents=True)
    for name, content in packs(fashion).items():
        (tmp_path / "own" / place / name).write_bytes(content)
    dls = dataset("fashion-mnist", tmp_path / "own", validation=0.25, device="cpu")
    assert (dls.train.n_items, dls.valid.n_items) == (30, 10)
    assert dls.facts() == dataset("fashion-mnist", tmp_path / "own", validation=0.25).facts()


def test_cifar10_is_read_from_its_archive(server, monkeypatch, cifar10, cache):
    members = {f"cifar-10-batches-py/{name}": raw for name, raw in raw_batches(cifar10).items()}
    archive = packed({"cifar-10-batches-py/readme.html": b"<html>", **members})
    use(monkeypatch, "cifar10", {"cifar-10-python.tar.gz": archive}, server)
    dls = dataset("cifar10", batch_size=16, device="cpu")
    assert dls.train.n_items == 11 + 12 + 13 + 14 + 15
    assert dls.train.input_shape == (3, 32, 32)
    x, y = pixels(dls.valid)
    expected, labels = cifar10["test_batch"]
    assert (dls.to_uint8(x) == expected.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)).all()
    assert y.tolist() == labels.tolist()
    assert dls.classes[3] == "cat"
    assert [file.name for file in (cache / "cifar10").iterdir()] == ["cifar-10-python.tar.gz"]


@pytest.mark.parametrize("place", ["", "cifar-100-python"])
def test_files_of_cifar100_in_a_folder(tmp_path, place):
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    files = {"train": random_images(120, 100, 3072), "test": random_images(30, 100, 3072)}
    for name, raw in raw_batches(files, "fine_labels").items():
        (folder / name).write_bytes(raw)
    dls = dataset("cifar100", tmp_path, device="cpu")
    assert (dls.train.n_items, dls.valid.n_items, len(dls.classes)) == (120, 30, 100)
    assert [dls.classes[i] for i in (0, 51, 99)] == ["apple", "mushroom", "worm"]
    labels = torch.cat([y for _, y in dls.train])
    assert torch.bincount(labels).tolist() == [2] * 20 + [1] * 80


def test_imagenette_is_extracted_with_its_photographs_only(server, monkeypatch, tmp_path, cache):
    names = [f"{part}/n01440764/n01440764_{i}.JPEG" for part in ("train", "val") for i in range(3)]
    members = {f"imagenette2-160/{name}": PHOTO for name in names}
    members["imagenette2-160/noisy_imagenette.csv"] = b"path,noisy"
    members["imagenette2-160/train/../../../escaped.JPEG"] = b"outside"
    members["imagenette2-160/train/n01440764/../../../../escaped.JPEG"] = b"outside"
    members["/imagenette2-160/train/n01440764/absolute.JPEG"] = b"outside"
    members["imagenette2-160/train/n01440764/link.JPEG"] = (tarfile.SYMTYPE, "/etc/passwd")
    members["imagenette2-160/train/n01440764/hard.JPEG"] = (tarfile.LNKTYPE, "/etc/passwd")
    archive = packed(members)
    use(monkeypatch, "imagenette", {"imagenette2-160.tgz": archive}, server)
    folder = photograph_folder(Files("imagenette", named.SOURCES["imagenette"]))
    assert folder == cache / "imagenette" / "imagenette2-160"
    found = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert found == names
    assert sorted(file.name for file in folder.parent.iterdir()) == [
        "imagenette2-160",
        "imagenette2-160.tgz",
    ]
    assert not list(tmp_path.rglob("escaped*"))
    photograph_folder(Files("imagenette", named.SOURCES["imagenette"]))
    assert len(server.asked) == 1
    # the extracted folder, and a read-only one with the archive
    own = Files("imagenette", named.SOURCES["imagenette"], folder)
    assert photograph_folder(own) == photograph_folder(replace(own, given=folder.parent)) == folder


def test_an_archive_in_a_folder_is_extracted_to_the_cache(monkeypatch, tmp_path, cache):
    archive = packed({f"imagenette2-160/{part}/n01/a.JPEG": PHOTO for part in ("train", "val")})
    use(monkeypatch, "imagenette", {"imagenette2-160.tgz": archive})
    own = tmp_path / "own"
    own.mkdir()
    (own / "imagenette2-160.tgz").write_bytes(archive)
    folder = photograph_folder(Files("imagenette", named.SOURCES["imagenette"], own))
    assert folder == cache / "imagenette" / "imagenette2-160"
    assert [file.name for file in own.iterdir()] == ["imagenette2-160.tgz"]


def test_a_cut_archive_leaves_no_half_folder(monkeypatch, tmp_path, cache):
    photos = {f"imagenette2-160/train/n01/{i}.JPEG": os.urandom(5000) for i in range(9)}
    archive = packed(photos)[:-9000]
    use(monkeypatch, "imagenette", {"imagenette2-160.tgz": archive})
    (tmp_path / "imagenette2-160.tgz").write_bytes(archive)
    with pytest.raises(DataError, match="an archive is damaged"):
        photograph_folder(Files("imagenette", named.SOURCES["imagenette"], tmp_path))
    assert list((cache / "imagenette").iterdir()) == []


def test_a_full_disk_while_extracting(monkeypatch, tmp_path, cache):
    archive = packed({"imagenette2-160/train/n01/a.JPEG": PHOTO})
    use(monkeypatch, "imagenette", {"imagenette2-160.tgz": archive})
    (tmp_path / "imagenette2-160.tgz").write_bytes(archive)
    cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot be read or written \(.+\); make room, or set"):
        photograph_folder(Files("imagenette", named.SOURCES["imagenette"], tmp_path))


def test_mnist_needs_no_file_and_takes_none(tmp_path):
    dls = dataset("mnist", batch_size=512, device="cpu", validation=0.1)
    assert (dls.train.n_items, dls.valid.n_items, dls.classes[9]) == (54_000, 6_000, "9")
    with pytest.raises(ArgumentError, match="folder is not for mnist, which comes with"):
        dataset("mnist", tmp_path)


def test_what_is_said_offline(server, monkeypatch, fashion, cache):
    use(monkeypatch, "fashion-mnist", zipped(fashion), server)
    missing = "t10k-images-idx3-ubyte.gz"
    content = server.files.pop(missing)
    with pytest.raises(DataError) as caught:
        dataset("fashion-mnist")
    place = cache / "fashion-mnist" / missing
    assert str(caught.value) == (
        f"{server.url(missing)} cannot be downloaded (HTTP 404 Not Found); download it in another "
        f"way and put it to {place}."
    )
    place.write_bytes(content)  # as it says
    assert dataset("fashion-mnist", device="cpu").train.n_items == 40


def test_what_is_said_of_a_folder_without_the_file(tmp_path, monkeypatch):
    with pytest.raises(DataError) as caught:
        dataset("cifar10", tmp_path)
    assert str(caught.value) == (
        f"folder={str(tmp_path)!r} has neither cifar-10-python.tar.gz nor what is in it; download "
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz and put it to "
        f"{tmp_path / 'cifar-10-python.tar.gz'}, or leave folder out."
    )
    with pytest.raises(ArgumentError, match=r"nowhere' does not exist; give the folder with cifar"):
        dataset("cifar10", tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ArgumentError, match=r"file' is not a folder; give the folder with cifar10"):
        dataset("cifar10", tmp_path / "file")


def test_a_file_put_there_by_hand_is_checked(tmp_path, monkeypatch):
    path = tmp_path / "cifar-100-python.tar.gz"
    path.write_bytes(b"<html>")
    found = hashlib.md5(b"<html>").hexdigest()
    with pytest.raises(DataError) as caught:
        dataset("cifar100", tmp_path)
    assert str(caught.value) == (
        f"{path} is damaged: it has the MD5 {found}, expected eb9058c3a382ffc7106e4002c42a8d85; "
        "delete it, download https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz again and "
        "put it there."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train-labels-idx1-ubyte": b""}, "labels-idx1-ubyte is not an IDX file of uint8 values"),
        ({"train-images-idx3-ubyte": b"\x00\x00\x08"}, "it begins with '00 00 08'"),
        ({"train-labels-idx1-ubyte": idx(np.zeros(39, np.uint8))}, "40 training images and 39 lab"),
        (
            {"t10k-labels-idx1-ubyte": idx(np.full(20, 10, np.uint8))},
            "test labels from 10 to 10; e",
        ),
        ({"t10k-labels-idx1-ubyte": idx(np.zeros((20, 1), np.uint8))}, r"have \[3, 1, 3, 2\] axes"),
    ],
)
def test_damaged_idx_files(tmp_path, fashion, change, message):
    for name, content in (fashion | change).items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        dataset("fashion-mnist", tmp_path)


def test_a_cut_idx_file():
    whole = idx(np.zeros((2, 3), np.uint8))
    assert idx_array(whole, "a").shape == (2, 3)
    with pytest.raises(DataError, match="a is damaged: it has 5 values, but its header says 2×3"):
        idx_array(whole[:-1], "a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "test of cifar100 is damaged or not a file of CIFAR"),
        (batch(np.zeros((2, 3072), np.uint8), [0, 1]), "no list 'fine_labels' of whole numbers"),
        (batch(np.zeros((2, 3), np.uint8), [0, 1], "fine_labels"), r"no array 'data' \(N, 3072\)"),
        (b"\x80\x02]q\x00.", r"no array 'data' \(N, 3072\)"),
        (batch(np.zeros((2, 3072), np.uint8), [0, 1, 2], "fine_labels"), "2 test images and 3 lab"),
    ],
)
def test_damaged_files_of_cifar(tmp_path, content, message):
    (tmp_path / "train").write_bytes(batch(*random_images(5, 2, 3072), "fine_labels"))
    (tmp_path / "test").write_bytes(content)
    with pytest.raises(DataError, match=message):
        dataset("cifar100", tmp_path)


def test_an_archive_without_one_of_its_files(tmp_path, monkeypatch, cifar10):
    members = {f"cifar-10-batches-py/{name}": raw for name, raw in raw_batches(cifar10).items()}
    members["cifar-10-batches-py/test_batch"] = (tarfile.SYMTYPE, "/etc/passwd")
    archive = packed(members)
    use(monkeypatch, "cifar10", {"cifar-10-python.tar.gz": archive})
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    with pytest.raises(DataError, match="test_batch of cifar10 is damaged"):
        dataset("cifar10", tmp_path)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch ran",)


ATTACKS = {
    "a call": pickle.dumps(Hostile(), 2),
    "a call in a newer protocol": pickle.dumps(Hostile(), 4),
    "a call in the oldest protocol": b"cos\nsystem\n(S'touch ran'\ntR.",
    "an instance": b"(S'touch ran'\nios\nsystem\n.",
    "an object": b"(cos\nsystem\nU\x09touch ranso.",
    "a new object": b"\x80\x02cbuiltins\neval\nU\x01a\x85\x81.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent id": b"Pid\n.",
    "a call of a text": b"\x80\x02U\x09os system\x85U\x01a\x85R.",
    "a text like an allowed name that is built": b"\x80\x02U\x0bnumpy dtype}b.",
    "an array of objects": batch(np.zeros((2, 3), np.uint8), [0], dtype="O8"),
    "a name behind an array's": b"\x80\x02cnumpy.core.multiarray\n_reconstruct.x\n.",
    "an array without a dtype": (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R(K\x01)N\x89U\x00tb."
    ),
    "no end": b"\x80\x02}",
    "an empty stack": b"\x80\x02a.",
    "a mark that is not there": b"\x80\x02e.",
    "a memo that is not there": b"\x80\x02h\x07.",
    "a huge memo": b"\x80\x02}r\xff\xff\xff\x7f0.",
    "an odd number of items": b"\x80\x02}(U\x01au.",
    "a list as a key": b"\x80\x02}(]]u.",
    "items for a list": b"\x80\x02](U\x01aU\x01bu.",
    "a huge shape": batch(np.zeros((2, 3), np.uint8), [0]).replace(
        b"K\x02K\x03\x86", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"
    ),
    "garbage": b"\xff\xfe\xfd",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, attack):
    with pytest.raises(DataError, match=r"^data is damaged or not a file of CIFAR \(.+ was run\.$"):
        read_pickle(ATTACKS[attack], "data")
    assert not (tmp_path / "ran").exists()


def test_what_python_pickles_of_plain_data_is_read():
    data = {"a": [1, 300, 70_000, -1, None, True, False], "b": (), "c": ("x",), "d": {"é": [[]]}}
    assert read_pickle(pickle.dumps(data, 2), "data") == data
    many = {"list": list(range(3000)), "tuples": [(i, str(i)) for i in range(400)]}
    assert read_pickle(pickle.dumps(many, 2), "data") == many


def test_an_array_in_fortran_order():
    x = np.arange(6, dtype=np.uint8).reshape(2, 3)
    raw = batch(np.asfortranarray(x), [0]).replace(
        b"tb\x89" + text(x.tobytes()), b"tb\x88" + text(x.tobytes("F"))
    )
    assert (read_pickle(raw, "data")["data"] == x).all()


def test_arguments_are_checked():
    with pytest.raises(ArgumentError) as caught:
        dataset("cifar-10")
    assert str(caught.value) == (
        "name must be one of 'mnist', 'fashion-mnist', 'cifar10', 'cifar100', 'imagenette', "
        "got 'cifar-10'. Closest: 'cifar10', 'cifar100'."
    )
    with pytest.raises(ArgumentError, match="validation must be 'test', for the test images, or"):
        dataset("mnist", validation="valid")
    with pytest.raises(ArgumentError, match="size=64 is for photographs, and mnist has images of"):
        dataset("mnist", size=64)


@pytest.mark.parametrize("validation", ["test", 0.1])
def test_an_augmented_data_set_keeps_its_sources(validation):
    dls = dataset("mnist", augment="digits", validation=validation, batch_size=64, device="cpu")
    n = 60_000 if validation == "test" else 54_000
    assert (dls.train.n_items, dls.valid.n_items) == (n, 10_000 if validation == "test" else 6_000)
    plain = dataset("mnist", validation=validation, batch_size=64, device="cpu")
    x, y = next(iter(dls.valid))
    x_plain, y_plain = next(iter(plain.valid))
    torch.testing.assert_close(x, x_plain, atol=1e-4, rtol=1e-4)
    assert torch.equal(y, y_plain)
    assert dls.valid.items.files[0].startswith("mnist t")
    again = dataset("mnist", augment="digits", validation=validation, batch_size=64, device="cpu")
    batch = next(iter(dls.train))
    assert torch.equal(batch[0], next(iter(again.train))[0])
    assert not torch.equal(batch[0], next(iter(plain.train))[0])


def test_photographs_have_names_for_their_classes(tmp_path, capsys):
    source = named_sources.SOURCES["imagenette"]
    for part, n in (("train", 3), ("val", 2)):
        for folder in source.folders:
            (tmp_path / part / folder).mkdir(parents=True)
            for i in range(n):
                image = Image.new("RGB", (40, 30), (9 * i, 50, 20 * n))
                image.save(tmp_path / part / folder / f"{folder}_{i}.JPEG")
    dls = dataset("imagenette", tmp_path, size=16, batch_size=4, augment="photos", device="cpu")
    assert dls.classes == source.classes
    assert dls.train.items.classes == source.classes
    x, y = next(iter(dls.train))
    assert (x.shape, y.shape) == ((4, 3, 16, 16), (4,))
    assert (dls.train.n_items, dls.valid.n_items) == (30, 20)
    assert "0 tench" in capsys.readouterr().out


def test_where_downloads_go(monkeypatch, tmp_path):
    assert named_files.data_folder() == tmp_path / "cache"
    monkeypatch.setenv("CONVLENS_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert named_files.data_folder() == tmp_path / "convlens" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert named_files.data_folder() == tmp_path / ".cache" / "convlens" / "data"


def test_addresses_are_safe_and_torchvision_is_not_loaded():
    files = [file for source in named_sources.SOURCES.values() for file in source.files]
    assert all(file.url.startswith("https://") and len(file.md5) == 32 for file in files)
    lengths = [len(source.classes) for source in named_sources.SOURCES.values()]
    assert lengths == [10, 10, 100, 10]
    code = "import sys, convlens.data.named; assert 'torchvision' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_checksums_and_classes_are_those_of_torchvision():
    datasets = pytest.importorskip("torchvision.datasets")
    sources = named_sources.SOURCES
    for name, peer in (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)):
        assert sources[name].files == (RemoteFile(peer.url, peer.tgz_md5),)
        assert sources[name].folder == peer.base_folder
    peer = datasets.FashionMNIST
    assert [(file.name, file.md5) for file in sources["fashion-mnist"].files] == peer.resources
    assert list(sources["fashion-mnist"].classes) == peer.classes
    peer = datasets.Imagenette
    source = sources["imagenette"]
    assert source.files == (RemoteFile(*peer._ARCHIVES["160px"]),)
    classes = {key: names[0] for key, names in peer._WNID_TO_CLASS.items()}
    assert dict(zip(source.folders, source.classes, strict=True)) == classes
