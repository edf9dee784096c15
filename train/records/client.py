"""A board over HTTP: what is sent has the token, and what goes wrong is a BoardError."""

from __future__ import annotations

import gzip
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

from helios.errors import UserError

TOKEN = "HELIOS_TOKEN"  # the environment variable
CONNECT, READ = 5.0, 60.0  # seconds that a board may take to accept a connection, and to answer
FIRST, LONGEST = 0.5, 15.0  # seconds, about, between the first tries and between later ones
ADDRESS = "an address with http:// or https://, and without a name, a password or a query"

T = TypeVar("T")


class BoardError(Exception):
    """A board did not do what it was asked; the text says why, in one line.

    status: of HTTP; 0: there was no answer. answer: the JSON that came with it; {} where none did.
    """

    def __init__(self, message: str, status: int = 0, answer: Mapping[str, Any] | None = None) -> None:
        super().__init__(" ".join(message.split()))
        self.status, self.answer = status, answer or {}

    @property
    def passing(self) -> bool:
        """Return whether the same may succeed later: there was no answer, or the server could not do its work."""
        return self.status in (0, 408, 429) or self.status >= 500


class Client:
    """Asks the board at the address `url`, over connections that are kept. Threads may share one.

    token: that of the board; by default the variable HELIOS_TOKEN of the environment. Raises UserError where the
    address is none, or there is no token.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        if not is_address(url):
            raise UserError(f"{url}: expected {ADDRESS}")
        token = (os.environ.get(TOKEN, "") if token is None else token).strip()
        if not token or not (token.isascii() and token.isprintable()):
            raise UserError(f"{TOKEN} {'has characters that no token has' if token else 'is not set'}; set it to the "
                            f"token of the board at {url}")
        import urllib3  # here, since most commands never need it

        self.url = url.rstrip("/")
        # Redirects are not followed: they might lead the token elsewhere.
        self.pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=CONNECT, read=READ), retries=False)
        self.headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}

    def get(self, path: str, **query: object) -> Any:
        """Return the answer to GET. Raises BoardError."""
        return self.request("GET", path, query=query)

    def post(self, path: str, value: Any) -> Any:
        """Return the answer to POST of a value, or of JSON in bytes, compressed. Raises BoardError."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.request("POST", path, gzip.compress(body, 1),
                            {"Content-Type": "application/json", "Content-Encoding": "gzip"})

    def request(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None,
                query: Mapping[str, object] | None = None) -> Any:
        """Return the JSON of the answer to a request.

        path: from /api on. query: its None are left out. Raises BoardError for no answer, for one of HTTP status 300 or
        above, and for one that is no JSON.
        """
        from urllib3.exceptions import HTTPError, ProtocolError

        given = {key: str(value) for key, value in (query or {}).items() if value is not None}
        target = f"{self.url}{path}" + (f"?{urlencode(given)}" if given else "")
        ask = lambda: self.pool.request(method, target, body=body, headers={**self.headers, **(headers or {})})
        try:
            try:
                got = ask()
            except ProtocolError:  # the board has closed the connection that was kept, just before
                got = ask()
        except (HTTPError, OSError) as error:
            raise BoardError(f"{self.url} does not answer: {_reason(error)}") from error
        try:
            answer = json.loads(got.data)
        except (ValueError, RecursionError):
            answer = None
        if got.status >= 300:
            said = answer if isinstance(answer, dict) else {}
            where = f" (to {got.headers['Location']})" if "Location" in got.headers else ""
            raise BoardError(f"{self.url} answers {got.status}: {said.get('error') or got.reason}{where}", got.status,
                             said)
        if answer is None:
            raise BoardError(f"{self.url} is no board: it answers {method} {path} without JSON", 404)
        return answer


def part_of(answer: Any, key: str) -> Any:
    """Return a part of an answer. Raises BoardError where it is missing."""
    if not isinstance(answer, dict) or key not in answer:
        raise BoardError(f"this is no answer of a board, for it has no {key!r}: {json.dumps(answer)[:80]}", 400)
    return answer[key]


def is_address(url: str) -> bool:
    """Return whether `url` is the address of a server, and nothing more, which could be a secret."""
    try:
        parts = urlsplit(url)
        return (parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
                and not {"@", "?", "#", " "} & set(url) and url.isprintable())
    except ValueError:
        return False


def waits() -> Iterator[float]:
    """Yield for ever the seconds to wait before the next try: they double, and are spread, so that many processes do
    not come at once."""
    seconds = FIRST
    while True:
        yield seconds * random.uniform(0.5, 1)
        seconds = min(2 * seconds, LONGEST)


def patiently(work: Callable[[], T], seconds: float) -> T:
    """Return `work()`, trying again while it raises a BoardError that may pass, for about `seconds` in all."""
    end, pauses = time.monotonic() + seconds, waits()
    while True:
        try:
            return work()
        except BoardError as error:
            left = end - time.monotonic()
            if not error.passing or left <= 0:
                raise
        time.sleep(min(next(pauses), left))


def _reason(error: Exception) -> str:
    """Return what the operating system or TLS said, without urllib3's own words for where."""
    cause: BaseException = error
    while cause.__cause__ is not None or cause.__context__ is not None:
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    if isinstance(cause, TimeoutError):
        return "it takes too long"
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
