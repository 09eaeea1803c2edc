"""Who is answered: the page is for its user alone, and shows nothing but runs."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import get, serving
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect
from views_data import write_healthy

from convlens.errors import ArgumentError
from convlens.views.live import serve
from convlens.views.live.address import Address, make_address
from convlens.views.live.server import MOST_BYTES
from convlens.views.live.store import key_of

TOKEN = "t0ken-of-24-characters-x"
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("served")
    for place, name in (("runs", "healthy"), ("outside", "secret")):
        write_healthy(base / place).path.rename(base / place / name)
    return base


@pytest.fixture(scope="module")
def address(base: Path) -> Iterator[Address]:
    with serving([base / "runs"]) as address:
        yield address


@pytest.fixture(scope="module")
def guarded(base: Path) -> Iterator[Address]:
    with serving([base / "runs"], token=TOKEN) as address:
        yield address


def connect(
    address: Address, session: str | None = None, message: str | None = None, **headers: str
) -> str:
    """What the page's socket says first, asked as a browser would; raises if it is refused.

    With a message, what it says after that.
    """
    cookie = {"Cookie": headers["Cookie"]} if "Cookie" in headers else {}
    _, _, page = get(address, "/", cookie)
    token = re.findall(r'"token":"([^"]+)"', page) or ["none"]
    request = HTTPRequest(
        f"ws://127.0.0.1:{address.port}/ws",
        headers={"Sec-WebSocket-Protocol": f"bokeh, {session or token[0]}", **headers},
    )

    async def go() -> str:
        connection = await websocket_connect(request)
        said = await connection.read_message()
        if message is not None:
            while said is not None and "ACK" not in str(said):
                said = await connection.read_message()
            for _ in range(2):  # the rest of the greeting
                await connection.read_message()
            await connection.write_message(message)
            said = await connection.read_message()
        connection.close()
        last = said
        while last is not None:
            last = await connection.read_message()
        return str(said)

    return asyncio.run(asyncio.wait_for(go(), 20))


def test_the_page_is_served_with_every_header_that_keeps_others_out(address: Address) -> None:
    status, headers, body = get(address)
    assert status == 200
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy  # no inline script, no eval
    assert "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Frame-Options"] == "DENY"
    assert "Access-Control-Allow-Origin" not in headers
    assert re.findall(r"<script(?![^>]*(?:src=|application/json))", body) == []


@pytest.mark.parametrize("path", ["/nothing", "/static/js/bokeh.min.js", "/assets/live.js"])
def test_every_answer_has_them(address: Address, path: str) -> None:
    _, headers, _ = get(address, path)
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1",
        "127.0.0.1:1",
        "127.0.0.1.evil.example:{port}",
        "",
    ],
)
def test_a_foreign_host_is_refused(address: Address, host: str) -> None:
    for path in ("/", "/ws", "/assets/live.js"):
        status, _, body = get(address, path, {"Host": host.format(port=address.port)})
        assert status in (400, 421)  # an empty one is refused by Tornado itself
        assert "healthy" not in body


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1"])
def test_our_own_names_are_answered(address: Address, host: str) -> None:
    assert get(address, "/", {"Host": f"{host}:{address.port}"})[0] == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "https://127.0.0.1:{port}",
        "http://127.0.0.1:1",
        "http://localhost.evil.example:{port}",
        "http://user@127.0.0.1:{port}",
        "http://[",
        "http://127.0.0.1:" + "1" * 5_000,
    ],
)
def test_a_foreign_origin_is_refused(address: Address, origin: str) -> None:
    origin = origin.format(port=address.port)
    assert get(address, "/", {"Origin": origin})[0] == 403
    with pytest.raises(HTTPClientError) as refused:
        connect(address, Origin=origin)
    assert refused.value.code == 403


def test_our_own_origin_may_connect(address: Address) -> None:
    assert "ACK" in connect(address, Origin=f"http://127.0.0.1:{address.port}")


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
def test_a_page_of_another_site_or_port_gets_no_session(
    address: Address, site: str, changed: dict[str, str]
) -> None:
    for path in ("/", "/assets/live.js"):
        status, _, body = get(address, path, {"Sec-Fetch-Site": site, **CLICKED, **changed})
        assert (status, body) == (403, "Pages of other sites may not talk to this one.\n")


def test_a_link_to_the_page_may_be_anywhere(address: Address, guarded: Address) -> None:
    for site in ("cross-site", "same-site", "same-origin", "none"):
        assert get(address, "/", {"Sec-Fetch-Site": site, **CLICKED})[0] == 200
        headers = {"Sec-Fetch-Site": site, **CLICKED}
        assert get(guarded, f"/?token={TOKEN}", headers)[0] == 302


def test_nothing_is_fetched_ahead(address: Address) -> None:
    headers = {"Sec-Fetch-Site": "none", "Sec-Purpose": "prefetch", "Sec-Fetch-Mode": "navigate"}
    assert get(address, "/", headers)[0] == 403


def test_a_session_that_the_server_did_not_make_is_refused(address: Address) -> None:
    payload = {"session_id": "mine", "session_expiry": 4_000_000_000}
    forged = base64.urlsafe_b64encode(json.dumps(payload).encode()).decode().rstrip("=")
    origin = f"http://127.0.0.1:{address.port}"
    assert connect(address, forged, Origin=origin) == "None"
    assert connect(address, f"{forged}.{forged}", Origin=origin) == "None"


def test_a_message_without_end_is_refused(address: Address) -> None:
    origin = f"http://127.0.0.1:{address.port}"
    assert connect(address, message=" " * (MOST_BYTES + 1), Origin=origin) == "None"
    assert connect(address, Origin=origin) != "None"  # others go on


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/?token=",
        "/?token=wrong-of-24-characters-x",
        "/assets/live.js",
        f"/assets/live.js?token={TOKEN}",
    ],
)
def test_without_the_token_nothing_is_shown(guarded: Address, path: str) -> None:
    status, _, body = get(guarded, path)
    assert status == 403
    assert "healthy" not in body
    assert TOKEN not in body


def test_without_the_token_nothing_connects(guarded: Address) -> None:
    with pytest.raises(HTTPClientError) as refused:
        connect(guarded, Origin=f"http://127.0.0.1:{guarded.port}")
    assert refused.value.code == 403


def test_the_token_moves_from_the_address_into_a_cookie(guarded: Address) -> None:
    status, headers, _ = get(guarded, f"/?token={TOKEN}")
    assert status == 302
    assert headers["Location"] == "/"
    cookie = headers["Set-Cookie"]
    assert f"convlens-token-{guarded.port}={TOKEN}" in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    name = cookie.partition(";")[0]
    status, _, body = get(guarded, "/", {"Cookie": name})
    assert status == 200
    assert "healthy" in body
    assert TOKEN not in body
    said = connect(guarded, Origin=f"http://127.0.0.1:{guarded.port}", Cookie=name)
    assert "ACK" in said


@pytest.mark.parametrize(
    "path",
    [
        "/../outside/secret",
        "/static/../../../../etc/passwd",
        "/static/js/../../../../../../etc/passwd",
        "/%2e%2e/outside/secret",
        "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/%252e%252e/outside/secret",
        "/assets/%252e%252e/live.js",
        "/assets/..%2flive.py",
        "/runs/healthy/run.db",
        "/healthy/run.db",
        "//etc/passwd",
        "/metadata",
        "/autoload.js",
    ],
)
def test_there_is_no_other_path(address: Address, path: str) -> None:
    status, _, body = get(address, path)
    assert status == 404
    assert "root:" not in body


@pytest.mark.parametrize("name", ["run", "compare"])
@pytest.mark.parametrize(
    "key",
    [
        "healthy",
        "../outside/secret",
        "%2e%2e%2foutside%2fsecret",
        "%252e%252e%252foutside%252fsecret",
        "/etc",
        "%00",
        EVIL.replace("<", "%3C").replace(">", "%3E"),
    ],
)
def test_a_run_is_found_by_its_key_only(address: Address, name: str, key: str) -> None:
    status, _, body = get(address, f"/?{name}={key}")
    assert status == 404
    assert "script>" not in body
    assert "secret" not in body


def test_a_run_outside_the_folder_has_no_key(base: Path, address: Address) -> None:
    link = base / "runs" / "leads-out"
    link.symlink_to(base / "outside" / "secret")
    try:
        assert get(address, f"/?run={key_of(base / 'runs' / 'healthy')}")[0] == 200
        assert get(address, f"/?run={key_of(base / 'outside' / 'secret')}")[0] == 404
        assert get(address, f"/?run={key_of(link)}")[0] == 404
        assert "leads-out" not in get(address)[2]
    finally:
        link.unlink()


@pytest.mark.parametrize("asked", ["epoch=--5", "epoch=x", "quantity=x", "side=x", "layer=x"])
def test_an_address_that_makes_no_sense_shows_the_run(address: Address, asked: str) -> None:
    status, _, body = get(address, f"/?{asked}")
    assert status == 200
    assert "healthy" in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_written(address: Address, method: str) -> None:
    assert get(address, "/", method=method)[0] == 405


def test_a_run_named_like_a_script_is_text(tmp_path: Path) -> None:
    name = EVIL.replace("/", "∕")  # a slash cannot be in a name, its look-alike can
    write_healthy(tmp_path).path.rename(tmp_path / name)
    with serving([tmp_path]) as address:
        _, _, body = get(address)
        (key,) = (key_of(path) for path in tmp_path.iterdir())
        _, _, page = get(address, f"/?run={key}")
    for html in (body, page):
        assert "alert(1)" in html
        assert "<script>alert" not in html


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
