"""The page of a run, over HTTP and in a real browser."""

from __future__ import annotations

import json

from live_server import get, key_of, serving


def test_a_run_is_a_page_its_figures_are_json_and_nothing_new_is_204(recorded):
    path = recorded("one-epoch")
    with serving([path.parent]) as address:
        key = key_of(address, path.name)
        status, headers, body = get(address, f"/run/{key}")
        assert status == 200
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        assert path.name in body
        status, _, item = get(address, f"/figure/curves?run={key}")
        assert (status, "doc" in json.loads(item)) == (200, True)
        mark = body.partition('data-mark="')[2].partition('"')[0]
        while get(address, f"/run/{key}?after={mark}")[0] != 204:  # until the doctor is done
            mark = get(address, f"/run/{key}")[2].partition('data-mark="')[2].partition('"')[0]


def test_what_there_is_not_is_said(recorded):
    with serving([recorded("one-epoch").parent]) as address:
        for path in ("/run/0123456789abcdef", "/nothing", "/figure/nothing", "/api/run/x"):
            status, _, body = get(address, path)
            assert status in (404, 410)
            assert ('"error"' if path.startswith("/api/") else "<p>") in body
