"""The image cache: made once, never half, never wrong, shared by processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convlens.core.file_locks import lock_folder
from convlens.data import image_cache
from convlens.data.decoding import ROW, SourceFile
from convlens.data.image_cache import cache_entries, cache_folder, clear_cache, decoded
from convlens.data.preprocessing import Preprocessing
from convlens.errors import ConvlensWarning, DataError

SETTINGS = Preprocessing((16, 16))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache") / "images"
    monkeypatch.setenv("CONVLENS_CACHE", str(folder))
    return folder


@pytest.fixture
def files(tmp_path):
    return make(tmp_path / "photos", 40)


def make(folder, n: int):
    """Images of one grey each, their number."""
    folder.mkdir()
    paths = [folder / f"{i:03}.png" for i in range(n)]
    for i, path in enumerate(paths):
        Image.new("L", (20, 20), i).save(path)
    return paths


@pytest.fixture
def decodings(monkeypatch):
    """The names of the files that were decoded."""
    names, decode = [], Preprocessing.decode
    monkeypatch.setattr(
        Preprocessing,
        "decode",
        lambda self, data, name: names.append(name) or decode(self, data, name),
    )
    return names


@pytest.fixture
def mounted(tmp_path):
    """Mounts a small file system; gives a function (size) → folder."""
    done = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"disk{len(done)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if (
            os.name != "posix"
            or os.getuid() != 0
            or subprocess.run(command, check=False).returncode
        ):
            message = "a file system can only be mounted by root"
            (pytest.fail if os.environ.get("CONVLENS_NO_SKIP") else pytest.skip)(message)
        done.append(folder)
        return folder

    yield mount
    for folder in done:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def right(found, n: int = 40) -> bool:
    return found.pixels.shape == (n, 1, 16, 16) and all(
        (found.pixels[i] == i).all() for i in range(n)
    )


def only_entry(cache) -> Path:
    (entry,) = cache.iterdir()
    return entry


def test_nothing_is_decoded_twice(files, cache, decodings):
    first = decoded(files, SETTINGS)
    assert right(first)
    assert first.entry == only_entry(cache)
    assert len(decodings) == 41  # the first file is also looked at for the channels
    decodings.clear()
    again = decoded(list(map(str, files)), SETTINGS)
    assert right(again)
    assert decodings == []
    assert isinstance(again.pixels, np.memmap)
    assert (again.hashes, again.formats, again.good.tolist()) == (
        first.hashes,
        first.formats,
        list(range(40)),
    )
    with pytest.raises(ValueError, match="read-only"):
        again.pixels[0] = 1


def test_other_settings_and_other_files_are_other_entries(files, cache):
    decoded(files, SETTINGS)
    decoded(files, Preprocessing((8, 8)))
    decoded(files[1:], SETTINGS)
    assert len(list(cache.iterdir())) == 3


def test_a_file_changed_after_caching_is_noticed(files, decodings):
    decoded(files, SETTINGS)
    found = files[3].stat()
    Image.new("L", (20, 20), 200).save(files[3])
    os.utime(files[3], ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    decodings.clear()
    assert (decoded(files, SETTINGS).pixels[3] == 200).all()
    assert decodings


def flipped(path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("pixels", lambda path: flipped(path, 5000)),
        ("pixels", lambda path: os.truncate(path, 5000)),
        ("pixels", lambda path: path.unlink()),
        ("rows", lambda path: flipped(path, 1)),
        ("rows", lambda path: os.truncate(path, ROW.itemsize)),
        ("items.json", lambda path: os.truncate(path, 30)),
        ("items.json", lambda path: path.write_text("[1]")),
        ("items.json", lambda path: path.unlink()),
    ],
)
def test_a_damaged_entry_is_made_again(files, cache, name, spoil):
    decoded(files, SETTINGS)
    spoil(only_entry(cache) / name)
    with pytest.warns(ConvlensWarning, match=r"cache .* is damaged; the images are decoded again"):
        assert right(decoded(files, SETTINGS))
    assert right(decoded(files, SETTINGS))


def test_what_changes_or_vanishes_while_it_is_read_is_left_out(files):
    listed = [SourceFile.listed(path) for path in files[:3]]
    files[0].write_bytes(files[1].read_bytes() + b"0")
    with pytest.raises(DataError, match=r"000\.png was changed while images were read"):
        listed[0].content()
    files[1].unlink()
    with pytest.raises(DataError, match=r"001\.png cannot be read \(No such file or directory\)"):
        listed[1].content()
    assert listed[2].content() == files[2].read_bytes()


def test_what_is_no_file_is_left_out(tmp_path, files, cache):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    gone = tmp_path / "gone.png"
    odd = [tmp_path, tmp_path / "pipe.png", tmp_path / "loop.png", gone]
    with pytest.raises(DataError, match="4 of 44 image files") as error:
        decoded([*odd, *files], SETTINGS)
    for path, why in zip(
        odd, ["not a file", "not a file", "a link that leads back to itself", ""], strict=True
    ):
        assert f"{path}: {'is ' + why if why else 'does not exist'}" in str(error.value)
    many = [*files, *make(tmp_path / "more", 60)]
    assert decoded([gone, *many], SETTINGS).skipped[0].why == "does not exist"
    shutil.copy(files[0], gone)
    assert decoded([gone, *many], SETTINGS).skipped == ()


def test_names_of_any_kind(tmp_path):
    names = ["ä ö.png", "猫 猫.png", "x" * 250 + ".png", "a\nb.png", "%s {}.png", "\udcff.png"]
    paths = [tmp_path / name for name in names]  # the last one is no text: the byte 255
    for i, path in enumerate(paths):
        Image.new("L", (20, 20), i).save(path)
    (tmp_path / "link.png").symlink_to(paths[0])
    for _ in range(2):
        found = decoded([*paths, tmp_path / "link.png"], SETTINGS)
        assert [int(one.max()) for one in found.pixels] == [0, 1, 2, 3, 4, 5, 0]
    paths[-1].write_text("no image")
    with pytest.raises(DataError, match=r"1 of 7 image .*\n.*\\xff\.png: is not an image"):
        decoded([*paths, tmp_path / "link.png"], SETTINGS)


def test_the_source_folder_may_be_read_only(mounted):
    disk = mounted("2m")
    files = make(disk / "photos", 40)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert right(decoded(files, SETTINGS))


def test_a_cache_that_cannot_be_written_is_put_elsewhere(files, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for _ in range(2):
        with pytest.warns(
            ConvlensWarning, match="cache .*file/x cannot be written.*Not a director"
        ):
            found = decoded(files, SETTINGS, folder=tmp_path / "file" / "x")
        assert right(found)
        assert found.entry.parent.parent == tmp_path
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.warns(ConvlensWarning) as warned:
        found = decoded(files, SETTINGS, folder=tmp_path / "file" / "x")
    assert right(found)
    assert found.entry is None
    assert [str(one.message).partition(" cannot")[0] for one in warned][:1] == [
        f"The image cache {tmp_path}/file/x"
    ]
    assert "The images are kept in memory" in str(warned[-1].message)


@pytest.mark.parametrize("kib", [8, 16])
def test_a_full_disk_ends_nothing_and_leaves_no_half_cache(files, kib, mounted, monkeypatch):
    """10 KiB of pixels and 2 KiB of rows: the pixels do not fit, or items.json does not."""
    disk = mounted(f"{kib}k")
    monkeypatch.setenv("CONVLENS_CACHE", str(disk / "images"))
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    with pytest.warns(ConvlensWarning) as warned:
        found = decoded(files, SETTINGS)
    assert right(found)
    assert found.entry is None
    assert "cannot be written (No space left on device)" in str(warned[0].message)
    assert "The images are kept in memory" in str(warned[-1].message)
    assert not [path for path in disk.rglob("*") if path.is_file()]
    subprocess.run(["mount", "-o", "remount,size=2m", str(disk)], check=True)
    assert decoded(files, SETTINGS).entry is not None


def test_neither_disk_nor_memory_is_a_sentence(files, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    monkeypatch.setattr(image_cache, "free_memory", lambda device: 1000)
    with pytest.warns(ConvlensWarning), pytest.raises(DataError, match=r"take 10\.2 kB, for which"):
        decoded(files, SETTINGS, folder=tmp_path / "file")


PROGRAM = """
import signal, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from convlens.data import decoding, image_cache
from convlens.data.preprocessing import Preprocessing

# Where the tests themselves run in the background of a script, SIGINT would be ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
decoding.MOST_IN_CHUNK = 4
mode, folder = sys.argv[1:]
go, count = threading.Event(), 0
write, decode = decoding.FolderStore.write, Preprocessing.decode

def say(*what):
    sys.stdout.write(" ".join(map(str, what)) + "\\n")  # whole lines, also from two threads
    sys.stdout.flush()

def stopped_decode(self, data, name):
    global count
    count += 1
    if mode == "stops" and Path(name).stem >= "020":
        say("waits")
        go.wait()
    return decode(self, data, name)

def told_write(self, start, pixels, rows):
    write(self, start, pixels, rows)
    say("wrote", start)

def read():
    sys.stdin.readline()
    go.set()

shutdown = ThreadPoolExecutor.shutdown

def told_shutdown(self, *args, **options):
    say("stopping")
    shutdown(self, *args, **options)

ThreadPoolExecutor.shutdown = told_shutdown
Preprocessing.decode, decoding.FolderStore.write = stopped_decode, told_write
image_cache.warn = say
threading.Thread(target=read, daemon=True).start()
found = image_cache.decoded(sorted(Path(folder).iterdir()), Preprocessing((16, 16)))
say("done", count, [int(one.max()) for one in found.pixels] == list(range(40)))
"""


@pytest.fixture
def start(files):
    """Starts another process that decodes the files."""
    running = []

    def start(mode: str):
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROGRAM, mode, str(files[0].parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def until(process, *lines: str) -> None:
    """Read a process's output until it said all of these."""
    missing = set(lines)
    while missing:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        missing = {one for one in missing if one not in line}


WROTE = [f"wrote {i}\n" for i in range(0, 20, 4)]


def test_a_second_process_waits_for_the_first(start, cache):
    first = start("stops")
    until(first, *WROTE, "waits")
    second = start("runs")
    until(second, "Another process is decoding the same images; waiting for it")
    assert first.poll() is second.poll() is None
    assert "done 41 True" in first.communicate("go\n", timeout=60)[0]
    assert "done 0 True" in second.communicate("go\n", timeout=60)[0]
    assert not only_entry(cache).name.endswith(".partial")


def test_after_sigkill_the_next_start_goes_on(start, cache, files, decodings):
    process = start("stops")
    until(process, *WROTE, "waits")
    process.kill()
    process.wait()
    assert only_entry(cache).name.endswith(".partial")
    assert [entry.what for entry in cache_entries()] == ["unfinished"]
    assert right(decoded(files, SETTINGS))
    assert 0 < len(set(decodings) - {str(files[0])}) <= 20
    assert not only_entry(cache).name.endswith(".partial")


def test_ctrl_c_ends_all_threads_and_the_next_start_goes_on(start, cache, files, decodings):
    process = start("stops")
    until(process, *WROTE, "waits")
    process.send_signal(signal.SIGINT)
    until(process, "stopping")  # or the threads could go on before the interrupt arrives
    out, err = process.communicate("go\n", timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert "done" not in out
    assert out.count("waits") <= 2 * (os.cpu_count() or 1)  # one in each thread
    assert right(decoded(files, SETTINGS))
    assert 0 < len(set(decodings) - {str(files[0])}) <= 20
    assert not only_entry(cache).name.endswith(".partial")


def test_pixels_of_an_interrupted_process_are_checked_before_they_are_used(start, cache, files):
    process = start("stops")
    until(process, *WROTE, "waits")
    process.kill()
    process.wait()
    flipped(only_entry(cache) / "pixels", 700)
    assert right(decoded(files, SETTINGS))


def aged(folder: Path, days: float) -> Path:
    folder.mkdir(parents=True)
    (folder / "rows").write_bytes(b"x" * 100)
    then = time.time() - days * 86_400
    os.utime(folder / "rows", (then, then))
    os.utime(folder, (then, then))
    return folder


def test_what_killed_processes_left_is_removed_by_the_next(files, cache):
    old, young = aged(cache / f"{'a' * 32}.partial", 2), aged(cache / f"{'b' * 32}.partial", 0.5)
    held = aged(cache / f"{'c' * 32}.partial", 2)
    unused, used = aged(cache / ("d" * 32), 40), aged(cache / ("e" * 32), 20)
    other = aged(cache / "notes", 100)
    handle = lock_folder(held)
    try:
        decoded(files, SETTINGS)
    finally:
        os.close(handle)
    assert [path.exists() for path in (old, young, held, unused, used, other)] == [
        *(False, True, True, False, True, True)
    ]


def test_the_cache_is_listed_and_cleared(files, cache):
    assert cache_entries() == []
    decoded(files, SETTINGS)
    decoded(files[:7], SETTINGS)
    entries = cache_entries()
    assert sorted(entry.what for entry in entries) == [
        f"40 images of 1×16×16 from {files[0].parent}",
        f"7 images of 1×16×16 from {files[0].parent}",
    ]
    assert all(entry.n_bytes > 1000 and time.time() - entry.used < 600 for entry in entries)
    found = decoded(files, SETTINGS)
    held = aged(cache / ("c" * 32 + ".partial"), 2)
    handle = lock_folder(held)
    assert len(clear_cache()) == 2
    os.close(handle)
    assert list(cache.iterdir()) == [held]
    assert right(found)  # what is in use stays readable
    assert clear_cache(cache)
    assert clear_cache("nowhere") == []


def test_where_the_cache_lies(monkeypatch):
    monkeypatch.setenv("CONVLENS_CACHE", "~/mine")
    assert cache_folder() == Path("~/mine").expanduser()
    monkeypatch.delenv("CONVLENS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/convlens/images")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("~/.cache/convlens/images").expanduser()


def test_without_locks_nobody_waits_and_nothing_is_shared(files, cache, monkeypatch):
    def no_locks(folder, *, wait=False):
        raise OSError("files are not locked here")

    monkeypatch.setattr(image_cache, "lock_folder", no_locks)
    assert right(decoded(files, SETTINGS))
    assert right(decoded(files, SETTINGS))
    assert not [
        path
        for path in cache.iterdir()
        if (path / "items.json").exists() is False and any(path.iterdir())
    ]
    assert clear_cache()


SHORT = """
import os, resource, sys
from pathlib import Path
from PIL import Image
from convlens.data.image_cache import decoded
from convlens.data.preprocessing import Preprocessing
from convlens.errors import DataError

folder = Path(sys.argv[1])
Image.new("L", (9, 9)).save(folder / "small.png")
Image.new("RGB", (5000, 5000)).save(folder / "large.png", compress_level=1)

def read(kind, limit, *names):
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit, before[1]))
    try:
        files = [folder / name for name in names]
        found = decoded(files, Preprocessing((8, 8)), folder=folder / "cache")
        return [len(found.good), *(one.why for one in found.skipped)]
    except DataError as error:
        return str(error)
    finally:
        resource.setrlimit(kind, before)

plenty = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
read(resource.RLIMIT_NOFILE, plenty, "small.png", "small.png")  # what is imported late
in_use = len(os.listdir("/proc/self/fd")) - 1
memory = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
for limit in (in_use + 3, plenty):  # three files are open while images are decoded
    print(read(resource.RLIMIT_NOFILE, limit, *["small.png"] * 5))
for limit in (memory + 70_000_000, resource.RLIM_INFINITY):
    print(read(resource.RLIMIT_AS, limit, "small.png", "large.png"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
def test_what_the_process_lacks_is_not_kept_as_damage_of_files(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SHORT, tmp_path], capture_output=True, text=True, timeout=120,
        env=os.environ | {"MALLOC_ARENA_MAX": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files, good, memory, whole = done.stdout.splitlines()
    assert "small.png cannot be read (Too many open files)." in files
    assert "large.png cannot be read (there is not enough memory)." in memory
    assert (good, whole) == ("[5]", "[2]")
