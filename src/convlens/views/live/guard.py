"""What stands before every request: the allow-lists, the token, and the headers of every answer."""

from __future__ import annotations

from http.cookies import CookieError
from urllib.parse import urlsplit

from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.web import OutputTransform, RequestHandler

from convlens.views.live.address import Address

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self'; connect-src 'self' {socket}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""No script but the server's own files, no inline script, no eval, nothing from elsewhere."""


class Guard:
    """Decides whether a request is answered.

    Args:
        address: where the page is served.
        paths: every path that there is, exactly.
    """

    def __init__(self, address: Address, paths: frozenset[str]) -> None:
        self.address, self.paths = address, paths

    def refusal(self, request: HTTPServerRequest) -> tuple[int, str] | None:
        """Status and sentence for a request that is not answered, None for one that is."""
        if not self.address.knows_host(request.headers.get("Host")):
            return (
                421,
                "This page is not served under that name; open the address that was printed.",
            )
        origin = request.headers.get("Origin")
        if (origin is not None and not self._is_ours(origin)) or _is_of_another_site(request):
            return 403, "Pages of other sites may not talk to this one."
        if request.path not in self.paths:
            return 404, "There is nothing here; the page is at /."
        if request.method not in ("GET", "HEAD"):
            return 405, "This page can only be read."
        if not self.has_token(request):
            return 403, "Open the address with its token, as it was printed when the page started."
        return None

    def has_token(self, request: HTTPServerRequest) -> bool:
        """Whether the cookie, or on the way in the address, holds the token."""
        if self.address.knows_token(_cookie(request, self.cookie)):
            return True
        given = request.query_arguments.get("token", [b""])[-1]
        return request.path == "/" and self.address.knows_token(given.decode("utf-8", "replace"))

    @property
    def cookie(self) -> str:
        """The cookie's name: cookies are shared by all ports of a machine."""
        return f"convlens-token-{self.address.port}"

    def _is_ours(self, origin: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:  # such as a bracket that is not closed
            return False
        return parts.scheme == "http" and self.address.knows_host(parts.netloc)


class Refused(RequestHandler):
    """Says no."""

    def initialize(self, status: int, sentence: str) -> None:
        """What to say."""
        self._status, self._sentence = status, sentence

    def prepare(self) -> None:
        """Answer at once, whatever the method."""
        self.set_status(self._status)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(self._sentence + "\n")

    def check_xsrf_cookie(self) -> None:
        """Nothing is changed here."""


def safe_headers(address: Address) -> type[OutputTransform]:
    """A transform that puts the headers on every answer, also on errors and files."""
    policy = POLICY.format(socket=f"ws://{urlsplit(address.url).netloc}")

    class SafeHeaders(OutputTransform):
        def transform_first_chunk(
            self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
        ) -> tuple[int, HTTPHeaders, bytes]:
            del finishing
            headers["Content-Security-Policy"] = policy
            headers["X-Content-Type-Options"] = "nosniff"
            headers["X-Frame-Options"] = "DENY"
            headers["Referrer-Policy"] = "no-referrer"
            headers["Cross-Origin-Resource-Policy"] = "same-origin"
            headers["Cross-Origin-Opener-Policy"] = "same-origin"
            if "Access-Control-Allow-Origin" in headers:
                del headers["Access-Control-Allow-Origin"]
            return status_code, headers, chunk

    return SafeHeaders


def _is_of_another_site(request: HTTPServerRequest) -> bool:
    """Whether a page of another site, or of another port, asked for it without a person's click.

    Each answer of "/" begins a session, which costs time beside a training. A link may be clicked
    anywhere: that opens the page as a document of its own, which the other one cannot read.
    Browsers say so (W3C, Fetch Metadata Request Headers); other programs send nothing of the kind.
    """
    get = request.headers.get
    if get("Sec-Fetch-Site", "none") in ("same-origin", "none"):
        return "Sec-Purpose" in request.headers  # fetched ahead, which any page may have asked for
    clicked = (get("Sec-Fetch-Mode"), get("Sec-Fetch-Dest"), get("Sec-Fetch-User"))
    return clicked != ("navigate", "document", "?1")


def _cookie(request: HTTPServerRequest, name: str) -> str:
    try:
        found = request.cookies.get(name)
    except CookieError:
        return ""
    return "" if found is None else found.value
