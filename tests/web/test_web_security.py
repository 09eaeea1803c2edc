"""Who is answered: the page is for its user alone, and shows nothing but runs."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import get, serving

from convlens.errors import ArgumentError
from convlens.runs import create_run
from convlens.web.address import Address, make_address
from convlens.web.server import serve
from convlens.web.store import key_of

TOKEN = "t0ken-of-24-characters-x"
EVIL = "<script>alert(1)</script>"
SCRIPT = "/static/site.js"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("served")
    for place, name in (("runs", "healthy"), ("outside", "secret")):
        create_run(directory=base / place / name).close()
    return base


@pytest.fixture(scope="module")
def address(base: Path) -> Iterator[Address]:
    with serving([base / "runs"]) as address:
        yield address


@pytest.fixture(scope="module")
def guarded(base: Path) -> Iterator[Address]:
    with serving([base / "runs"], token=TOKEN) as address:
        yield address


@pytest.fixture(scope="module")
def key(base: Path) -> str:
    return key_of(base / "runs" / "healthy")


def test_every_answer_has_the_headers_that_keep_others_out(address: Address, key: str) -> None:
    answers = [
        ("/", 200), (f"/run/{key}", 200), (f"/figure/curves?run={key}", 200), ("/api/runs", 200),
        (SCRIPT, 200), ("/static/bokeh.js", 200), ("/static/nothing", 404), ("/nothing", 404),
        ("/run/none", 410), ("/api/none", 404), ("/static/site.js?v=%ff", 400),
    ]  # fmt: skip
    for path, expected in answers:
        status, headers, body = get(address, path)
        assert (path, status) == (path, expected)
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy  # no inline script, no eval
        assert "frame-ancestors" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert not {"Access-Control-Allow-Origin", "Server"} & headers.keys()
        if "html" in headers["Content-Type"]:
            assert re.findall(r"<script(?![^>]*(?:src=|application/json))", body) == []
            assert re.findall(r"""\son\w+=|javascript:""", body) == []
        assert "Traceback" not in body
        assert get(address, path, method="HEAD")[::2] == (expected, "")


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "",
     "127.0.0.1.evil.example:{port}", "127.0.0.1:{port}, evil.example"],
)  # fmt: skip
def test_a_foreign_host_is_refused(address: Address, key: str, host: str) -> None:
    for path in ("/", f"/figure/curves?run={key}", "/api/runs", SCRIPT):
        status, _, body = get(address, path, {"Host": host.format(port=address.port)})
        assert status in (400, 421)  # an empty one is refused by Tornado itself
        assert "healthy" not in body


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1"])
def test_our_own_names_are_answered(address: Address, host: str) -> None:
    assert get(address, "/", {"Host": f"{host}:{address.port}"})[0] == 200


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1",
     "http://localhost.evil.example:{port}", "http://user@127.0.0.1:{port}", "http://[",
     "http://127.0.0.1:" + "1" * 5_000],
)  # fmt: skip
def test_a_foreign_origin_is_refused(address: Address, origin: str) -> None:
    for path in ("/", "/api/runs", SCRIPT):
        assert get(address, path, {"Origin": origin.format(port=address.port)})[0] == 403


def test_our_own_origin_is_answered(address: Address) -> None:
    origin = f"http://127.0.0.1:{address.port}"
    assert get(address, "/", {"Origin": origin})[0] == 200


CLICKED = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Sec-Fetch-User": "?1"}
"""What a browser sends where a person has clicked on a link; Chromium's, tried."""


@pytest.mark.parametrize("site", ["cross-site", "same-site", "something new"])
@pytest.mark.parametrize(
    "changed",
    [
        {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "empty", "Sec-Fetch-User": ""},
        {"Sec-Fetch-Dest": "iframe"},
        {"Sec-Fetch-User": ""},  # a script of that page, or its meta refresh
    ],
)
def test_a_page_of_another_site_or_port_reads_nothing(
    address: Address, key: str, site: str, changed: dict[str, str]
) -> None:
    for path in ("/", f"/figure/curves?run={key}", "/api/runs", SCRIPT):
        status, _, body = get(address, path, {"Sec-Fetch-Site": site, **CLICKED, **changed})
        assert (status, body) == (403, "Pages of other sites may not read this one.\n")


def test_a_link_to_the_page_may_be_anywhere(address: Address, guarded: Address) -> None:
    for site in ("cross-site", "same-site", "same-origin", "none"):
        headers = {"Sec-Fetch-Site": site, **CLICKED}
        assert get(address, "/", headers)[0] == 200
        assert get(guarded, f"/?token={TOKEN}", headers)[0] == 302


def test_nothing_is_fetched_ahead(address: Address) -> None:
    headers = {"Sec-Fetch-Site": "none", "Sec-Purpose": "prefetch", "Sec-Fetch-Mode": "navigate"}
    assert get(address, "/", headers)[0] == 403


def test_without_the_token_nothing_is_shown(guarded: Address, key: str) -> None:
    paths = (
        "/", "/?token=", "/?token=wrong-of-24-characters-x", SCRIPT, f"{SCRIPT}?token={TOKEN}",
        f"/run/{key}", f"/figure/curves?run={key}&token={TOKEN}", "/api/runs", "/?token=%ff%00",
    )  # fmt: skip
    for path in paths:
        status, _, body = get(guarded, path)
        assert (path, status) == (path, 403)
        assert "healthy" not in body
        assert TOKEN not in body
    for cookie in ("", "\xff", "a=;;=", f"convlens-token-1={TOKEN}"):
        assert get(guarded, "/", {"Cookie": cookie})[0] == 403


def test_the_token_moves_from_the_address_into_a_cookie(guarded: Address, key: str) -> None:
    status, headers, _ = get(guarded, f"/?filter=a%26b&token={TOKEN}")
    assert (status, headers["Location"]) == (302, "/?filter=a%26b")
    cookie = headers["Set-Cookie"]
    assert f"convlens-token-{guarded.port}={TOKEN}" in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    for path in ("/", f"/run/{key}"):
        status, _, body = get(guarded, path, {"Cookie": cookie.partition(";")[0]})
        assert status == 200
        assert "healthy" in body
        assert TOKEN not in body


def test_a_token_leads_to_no_other_site(address: Address) -> None:
    for path in ("//evil.example/", "/\\evil.example", "/%0d%0aLocation:x"):
        status, headers, _ = get(address, f"{path}?token=x")
        assert status == 404
        assert "Location" not in headers


@pytest.mark.parametrize(
    "path",
    ["/../outside/secret", "/static/../../../../etc/passwd", "/%2e%2e/outside/secret",
     "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/%252e%252e/outside/secret", "/static/",
     "/static/base.css", "/static/__init__.py", "/static/..%2fserver.py", "/runs/healthy/run.db",
     "/healthy/run.db", "//etc/passwd", "/metadata", "/ws", "/figure/", "/figure/../run",
     "/run", "/%72un/x"],
)  # fmt: skip
def test_there_is_no_other_path(address: Address, path: str) -> None:
    status, _, body = get(address, path)
    assert status == 404
    assert "root:" not in body


@pytest.mark.parametrize("place", ["/run/{}", "/api/run/{}", "/figure/curves?run={}"])
@pytest.mark.parametrize(
    "name",
    ["healthy", "../outside/secret", "%2e%2e%2foutside%2fsecret", "%252e%252e%252foutside",
     "/etc", "%00", "", "%ff", EVIL.replace("<", "%3C").replace(">", "%3E")],
)  # fmt: skip
def test_a_run_is_found_by_its_key_only(address: Address, place: str, name: str) -> None:
    status, _, body = get(address, place.format(name))
    assert status in (404, 410)
    assert "script>alert" not in body
    assert "secret" not in body


def test_a_run_outside_the_folder_has_no_key(base: Path, address: Address, key: str) -> None:
    link = base / "runs" / "leads-out"
    link.symlink_to(base / "outside" / "secret")
    try:
        assert get(address, f"/run/{key}")[0] == 200
        assert get(address, f"/run/{key_of(base / 'outside' / 'secret')}")[0] == 410
        assert get(address, f"/run/{key_of(link)}")[0] == 410
        assert "leads-out" not in get(address)[2]
    finally:
        link.unlink()


def test_an_address_that_makes_no_sense_shows_the_run(address: Address, key: str) -> None:
    asked = [
        "epoch=--5", "epoch=x", "quantity=x", "layer=x", "layer=" + "x" * 20_000, "smooth=nan",
        "channel=999999999&row=-1&col=999999999", "epoch=1&epoch=2&epoch=", "&&=&a", "%ff=%fe",
        "run=" + "&run=".join("abcdefghijkl"), "after=&after=x", "zoom=1_2", "true=-1&predicted=9",
    ]  # fmt: skip
    for query in asked:
        status, _, body = get(address, f"/run/{key}?{query}")
        assert (query, status) == (query, 200)
        assert "healthy" in body
        assert len(body) < 500_000


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "LOCK"])
def test_nothing_can_be_written(address: Address, method: str) -> None:
    for path in ("/", SCRIPT):
        assert get(address, path, method=method)[0] in (403, 405)


def test_a_run_named_like_a_script_is_text(tmp_path: Path) -> None:
    name = EVIL.replace("/", "∕")  # a slash cannot be in a name, its look-alike can
    create_run(directory=tmp_path / name).close()
    with serving([tmp_path]) as address:
        pages = get(address)[2], get(address, f"/run/{key_of(tmp_path / name)}")[2]
    for html in pages:
        assert "alert(1)" in html
        assert "<script>alert" not in html


def test_requests_one_after_the_other_are_answered_in_order(address: Address) -> None:
    line = f"HTTP/1.1\r\nHost: 127.0.0.1:{address.port}\r\n"
    with socket.create_connection(("127.0.0.1", address.port), timeout=30) as there:
        there.sendall(f"GET /nothing {line}\r\nGET / {line}Connection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: there.recv(1 << 16), b"")).decode()
    assert re.findall(r"HTTP/1.1 (\d+)", answer) == ["404", "200"]


def test_others_can_reach_it_only_with_a_token() -> None:
    with pytest.raises(
        ArgumentError, match=r"address='0\.0\.0\.0' can be reached by other .*token"
    ):
        make_address("0.0.0.0")
    with pytest.raises(ArgumentError, match="at least 16"):
        make_address("0.0.0.0", token="short")
    with pytest.raises(ArgumentError, match=r"letters \(a to z\), digits, - or _ only"):
        make_address("0.0.0.0", token="long enough, but with blanks")
    assert len(make_address("0.0.0.0", token="auto").token) >= 32
    assert make_address("::1").loopback
    assert make_address("127.0.0.53").loopback


def test_where_others_can_reach_it_names_must_be_given() -> None:
    open_to_all = make_address("0.0.0.0", 80, "auto", ("Box.example",))
    assert open_to_all.knows_host("box.example")
    assert open_to_all.knows_host("192.0.2.7:80")  # a number cannot be made to mean another machine
    assert not open_to_all.knows_host("evil.example:80")
    one = make_address("192.0.2.7", 5006, "auto")
    assert one.knows_host("192.0.2.7:5006")
    assert not one.knows_host("192.0.2.8:5006")


def test_a_port_in_use_is_a_sentence(address: Address) -> None:
    with pytest.raises(ArgumentError, match=rf"port={address.port} cannot be served on"):
        serve([], make_address(port=address.port))


def test_an_address_of_another_machine_is_a_sentence() -> None:
    with pytest.raises(ArgumentError, match=r"192\.0\.2\.7.*give another --address"):
        serve([], make_address("192.0.2.7", 0, "auto"))
