"""What stands before the server's answers: who may read and write, how much is read, and headers for browsers."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import zlib

import h11
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")  # of a run, and a file's name
PATIENCE = 30.0  # seconds in which a request's body must come
HEADERS = [(name.encode(), value.encode()) for name, value in {
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
                               "frame-ancestors 'none'",
    "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin", "cross-origin-opener-policy": "same-origin"}.items()]


class Guard:
    """Lets pass who may: writes with the token; reads with it, too, or on this machine's own address without one.

    token: None: there is none, and nobody writes. loopback: whether the server listens on this machine's own address
    alone; then it answers under such a name only, since a page elsewhere might give its own name this address.
    """

    def __init__(self, app: ASGIApp, token: str | None, loopback: bool) -> None:
        self.app, self.token, self.loopback = app, token, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                caching = b"no-store" if scope["path"].startswith("/api/") else b"no-cache"
                kept = [pair for pair in message.get("headers", []) if pair[0] != b"cache-control"]
                message["headers"] = [*kept, *HEADERS, (b"cache-control", caching)]
            await send(message)

        headers = dict(scope["headers"])
        status, why = self._refusal(scope["method"], scope["path"], headers.get(b"host", b""),
                                    headers.get(b"authorization", b""))
        if status:
            more = {"www-authenticate": "Bearer"} if status == 401 else None
            await JSONResponse({"error": why}, status, more)(scope, receive, answer)
            return
        await self.app(scope, receive, answer)

    def _refusal(self, method: str, path: str, host: bytes, given: bytes) -> tuple[int, str]:
        if self.loopback and not is_loopback(re.sub(r":\d*$", "", host.decode("latin-1")).strip("[]")):
            return 400, "the board answers under localhost or 127.0.0.1 only"
        reads = method in ("GET", "HEAD")
        if not path.startswith("/api/") or (reads and self.loopback):
            return 0, ""
        if self.token is None:
            return 403, "the board has no token, so nobody may write; start it with --token-file or HELIOS_TOKEN"
        if not hmac.compare_digest(given, b"Bearer " + self.token.encode()):
            return 401, "wrong or no token; send Authorization: Bearer TOKEN"
        return 0, ""


def is_loopback(host: str) -> bool:
    """Return whether a name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")


async def body(request: Request, limit: int) -> bytes:
    """Return a request's body, unpacked. Raises HTTPException where it is longer than `limit` bytes, packed or not,
    where it does not come in time, or is no gzip though it says so."""
    closing = {"connection": "close"}
    too_long = HTTPException(413, f"the body is longer than {limit:,} bytes; send less at a time", closing)
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > limit:
        raise too_long
    raw = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > limit:
                    raise too_long
    except TimeoutError:
        raise HTTPException(408, f"the body did not come within {PATIENCE:.0f} s", closing) from None
    except ClientDisconnect:
        raise HTTPException(400, "the body ended early") from None
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding == "identity":
        return bytes(raw)
    if encoding != "gzip":
        raise HTTPException(415, "cannot read that Content-Encoding; send gzip or none")
    unpacker = zlib.decompressobj(wbits=31)
    try:
        found = unpacker.decompress(raw, limit + 1)
    except zlib.error:
        raise HTTPException(400, "the body is no gzip") from None
    if len(found) > limit:
        raise too_long
    if not unpacker.eof or unpacker.unused_data:
        raise HTTPException(400, "the body is gzip that ends early, or goes on after its end")
    return found


class Patient(H11Protocol):
    """A connection that is closed when no request has come for PATIENCE seconds, not even slowly."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(PATIENCE, self._check, None)

    def _check(self, cycle: object) -> None:
        """Close if the request after that of `cycle` is still to come."""
        waits = self.conn.their_state is h11.IDLE
        if self.transport.is_closing():
            return
        if waits and self.cycle is cycle:
            self.transport.close()
        else:
            self.loop.call_later(PATIENCE, self._check, self.cycle if waits else self)
