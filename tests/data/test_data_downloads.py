"""Downloads from a server of the test's own: broken, wrong, resumed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from convlens.data import downloads
from convlens.data.downloads import CHUNK, download
from convlens.errors import ArgumentError, DataError

CONTENT = os.urandom(1_500_000)
CHECKSUM = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


@pytest.fixture
def url(server):
    return server.serve("digits.gz", CONTENT)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "digits.gz"


def part_of(path):
    return path.with_name(path.name + ".part")


def test_a_file_is_downloaded_once(server, url, path, capsys):
    assert download(url, path, CHECKSUM) == path
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["digits.gz"]
    assert capsys.readouterr() == ("", f"downloading digits.gz from {url}\n")
    download(url, path, CHECKSUM)
    assert server.asked == [("digits.gz", None)]


@pytest.mark.skipif(os.name == "nt", reason="folders are not locked there")
def test_several_at_once_download_once(server, url, path):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: download(url, path, CHECKSUM), range(4)))
    assert found == [path] * 4
    assert path.read_bytes() == CONTENT
    assert server.asked == [("digits.gz", None)]


def test_any_hash_that_hashlib_knows(url, path):
    download(url, path, f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")
    assert path.read_bytes() == CONTENT


def test_a_connection_that_breaks_is_resumed_at_once(server, url, path):
    server.cuts = [700_000, 0, 500_000]
    with pytest.raises(DataError, match=r"ended after 700 kB of 1\.50 MB\); try again, which goes"):
        download(url, path, CHECKSUM)  # the second answer brings nothing
    assert part_of(path).read_bytes() == CONTENT[:700_000]
    assert not path.exists()
    download(url, path, CHECKSUM)
    assert path.read_bytes() == CONTENT
    ranges = [None, "bytes=700000-", "bytes=700000-", "bytes=1200000-"]
    assert [asked for _, asked in server.asked] == ranges


def test_a_server_that_ignores_range_starts_anew(server, url, path):
    server.cuts = [700_000, 0]
    server.knows_range = False
    with pytest.raises(DataError):
        download(url, path, CHECKSUM)
    download(url, path, CHECKSUM)
    assert path.read_bytes() == CONTENT


def test_a_length_that_is_never_reached_ends(server, url, path):
    server.cuts = [1000] * 20
    with pytest.raises(DataError) as caught:
        download(url, path, CHECKSUM)
    assert str(caught.value) == (
        f"{url} cannot be downloaded (it ended after 5.00 kB of 1.50 MB); try again, which goes on "
        f"from where it stopped, or download it in another way and put it to {path}."
    )
    assert len(server.asked) == downloads.MOST_TRIES
    assert part_of(path).read_bytes() == CONTENT[:5000]


def test_a_part_that_was_whole_is_checked_and_renamed(server, url, path):
    path.parent.mkdir()
    part_of(path).write_bytes(CONTENT)
    download(url, path, CHECKSUM)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("rest", [b"", b"and more"])
def test_a_wrong_checksum_deletes_the_part(server, path, rest):
    wrong = b"<html>log in first</html>"
    url = server.serve("digits.gz", wrong)
    if rest:  # of an earlier version of the file, longer than it is now
        path.parent.mkdir()
        part_of(path).write_bytes(wrong + rest)
    with pytest.raises(DataError) as caught:
        download(url, path, CHECKSUM)
    found = hashlib.md5(wrong + rest).hexdigest()
    assert str(caught.value) == (
        f"{url} gave {len(wrong + rest)} B with the MD5 {found}, expected {CHECKSUM[4:]}; it was "
        f"deleted: try again, or download it in another way and put it to {path}."
    )
    assert list(path.parent.iterdir()) == []
    server.files["digits.gz"] = CONTENT
    download(url, path, CHECKSUM)
    assert path.read_bytes() == CONTENT


def test_without_a_length_the_checksum_tells(server, url, path):
    server.says_length = False
    server.cuts = [1000]
    with pytest.raises(DataError, match=r"gave 1\.00 kB with the MD5"):
        download(url, path, CHECKSUM)
    download(url, path, CHECKSUM)
    assert path.read_bytes() == CONTENT


def test_a_file_that_is_not_there(server, path):
    with pytest.raises(DataError) as caught:
        download(server.url("gone.gz"), path, CHECKSUM)
    assert str(caught.value) == (
        f"{server.url('gone.gz')} cannot be downloaded (HTTP 404 Not Found); download it in "
        f"another way and put it to {path}."
    )
    assert list(path.parent.iterdir()) == []


def test_no_server(path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.gz"
        with pytest.raises(DataError, match=r"refused\); try again, .* and put it to /.*gz\.$"):
            download(url, path, CHECKSUM)
    with pytest.raises(DataError, match=r"^https://nowhere\.invalid/a\.gz cannot be downloaded \("):
        download("https://nowhere.invalid/a.gz", path, CHECKSUM)


def test_a_server_that_falls_silent(server, url, path, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT_S", 0.1)
    server.cuts = [1000, 0]
    server.after_cut = server.silent.wait
    with pytest.raises(DataError, match=r"\(no answer in 0\.1 s\); try again, which goes on"):
        download(url, path, CHECKSUM)


@pytest.fixture
def _ctrl_c_interrupts():
    """Once; where the tests run in the background of a script, SIGINT would be ignored."""

    def interrupt(*_):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c_interrupts")
def test_ctrl_c_leaves_what_there_is(server, url, path):
    server.cuts = [700_000]

    def interrupt():
        # Not between the part's opening and its use: what it holds then is left to the collector.
        while not (part_of(path).exists() and part_of(path).stat().st_size == 2 * CHUNK):
            server.silent.wait(0.01)
        # Again, as a signal just before the wait for bytes does not end that wait. The connection
        # stays open.
        while not server.silent.wait(0.05):
            os.kill(os.getpid(), signal.SIGINT)

    server.after_cut = interrupt
    with pytest.raises(KeyboardInterrupt):
        download(url, path, CHECKSUM)
    assert not path.exists()
    server.silent.set()
    download(url, path, CHECKSUM)
    assert path.read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, f"bytes={2 * CHUNK}-"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk(url, path):
    path.parent.mkdir()
    part_of(path).symlink_to("/dev/full")
    with pytest.raises(DataError) as caught:
        download(url, path, CHECKSUM)
    assert str(caught.value) == (
        f"{path} cannot be written (No space left on device); make room, or download {url} in "
        "another way and put it there."
    )


def test_a_folder_that_cannot_be_made(url, tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(DataError, match=r"digits\.gz cannot be written \(.+\); make room, or"):
        download(url, tmp_path / "data" / "digits.gz", CHECKSUM)


@pytest.mark.parametrize(
    "url", ["http://example.org/a.gz", "ftp://example.org/a.gz", "file:///etc/passwd", "a.gz"]
)
def test_other_addresses_are_refused(url, path):
    with pytest.raises(ArgumentError, match="https address, or an http address of 127"):
        download(url, path, CHECKSUM)


def test_redirects_are_followed_to_safe_addresses_only(server, url, path):
    server.redirects = {"moved": url, "file": "file:///etc/passwd", "plain": "http://a.example/"}
    for name in ("file", "plain"):
        with pytest.raises(DataError, match="cannot be downloaded"):
            download(server.url(name), path, CHECKSUM)
    download(server.url("moved"), path, CHECKSUM)
    assert path.read_bytes() == CONTENT


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_in_a_terminal_and_none_without_standard_error(url, path, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    download(url, path, CHECKSUM)
    assert "digits.gz" in screen.getvalue()
    assert "MB" in screen.getvalue()
    path.unlink()
    monkeypatch.setattr(sys, "stderr", None)
    download(url, path, CHECKSUM)
    path.unlink()
    with open("/dev/null") as unwritable, contextlib.redirect_stderr(unwritable):
        download(url, path, CHECKSUM)
    assert path.read_bytes() == CONTENT
