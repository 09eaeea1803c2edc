"""Runs in a notebook: inline, in a frame, and outside of one."""

from __future__ import annotations

import base64
import http.server
import io
import re
import threading
from contextlib import contextmanager
from html.parser import HTMLParser

import nbclient
import nbformat
import pytest
from live_server import get
from PIL import Image

import convlens as cl
from convlens.errors import RunError
from convlens.web.notebook import served

ROOM = 300_000
"""Bytes of one output: a notebook with a dozen of them is still handled by every program."""


def pictures(html: str) -> list[tuple[int, int]]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(one))).size for one in found]


def executed(*cells: str) -> list[list[dict]]:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    return [cell.outputs for cell in notebook.cells]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_cells_show_runs(recorded):
    path = recorded("nan")
    run, viewed, listed, framed = executed(
        f"import convlens as cl\ncl.open_run({str(path)!r})",
        f"cl.view({str(path)!r})",
        f"cl.view({str(path.parent)!r})",
        f"cl.view(cl.open_run({str(path)!r}), iframe=True, height=500)",
    )
    for (output,) in (run, viewed):
        html = output["data"]["text/html"]
        assert len(html) < ROOM
        assert "problem</b>" in html
        assert ">nan-0001<" in html
        ((width, height),) = pictures(html)
        assert width > 900
        assert height > 500
    assert "text/plain" in run[0]["data"]
    assert "nan-0001" in listed[0]["data"]["text/html"]
    frame = framed[0]["data"]["text/html"]
    assert re.search(r'src="http://127\.0\.0\.1:\d+/run/[0-9a-f]{16}\?frame=[\w-]{32}"', frame)
    assert 'height="500"' in frame


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.seen = set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)


@pytest.mark.parametrize("name", ["names", "one-step", "own-loop", "wrong-values"])
def test_any_run_has_html_without_hostile_tags(recorded, name):
    html = cl.open_run(recorded(name))._repr_html_()
    assert html is not None
    assert Tags(html).seen <= {"div", "b", "span", "img"}
    assert len(pictures(html)) == 1
    assert "onerror" not in re.sub(r"&lt;.*?&gt;", "", html)


def test_an_unreadable_run_has_its_plain_repr(recorded, tmp_path):
    run = cl.open_run(recorded("one-step"))
    run.close()
    assert run._repr_html_() is None
    assert repr(run).endswith("closed)")


def test_outside_of_a_notebook_its_address_is_printed(recorded, capsys):
    path = recorded("one-step")
    cl.view(path)
    cl.view(cl.open_run(path), iframe=True)
    first, second = capsys.readouterr().out.splitlines()
    assert first == second  # the same server
    address = served(path.resolve(), 0)
    assert first == f"The page is at {address.url} until this process ends."
    assert path.name in get(address)[2]
    with pytest.raises(RunError, match="does not exist"):
        cl.view(path / "missing")


@contextmanager
def another_page(html: str):
    """A page of another port, as a notebook is."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_frame_shows_the_page_to_whom_has_its_token(browser, recorded, host):
    address = served(recorded("one-step").resolve(), 0)
    with another_page(
        f'<iframe id="a" width="900" height="700" src="{address.url}?frame={address.frame_token}">'
        f'</iframe><iframe id="b" src="{address.url}"></iframe>'
        f'<iframe id="c" src="{address.url}?frame={"x" * 32}"></iframe>'
    ) as port:
        tab = browser.new_page()
        tab.goto(f"http://{host}:{port}/")
        frame = tab.frame_locator("#a")
        frame.locator(".topbar").wait_for()
        frame.locator("a", has_text="one-step").first.click()
        frame.locator("#curves .bk-Figure").first.wait_for()
        for other in ("#b", "#c"):
            tab.frame_locator(other).get_by_text("Pages of other sites may not").wait_for()
        tab.close()


def test_without_a_frame_token_no_page_may_hold_it(recorded):
    from live_server import serving

    with serving([recorded("one-step").parent]) as address:
        assert "frame-ancestors 'none'" in get(address)[1]["Content-Security-Policy"]
        asked = {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate",
                 "Sec-Fetch-Dest": "iframe"}  # fmt: skip
        assert get(address, "/?frame=", asked)[0] == 403
