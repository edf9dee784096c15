"""The board's server: its addresses, the stream, and the page."""

from __future__ import annotations

import asyncio
import json
import mimetypes
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

import helios
from helios.model import activations
from helios.train.board import ingest, journals, queries, series
from helios.train.board.answers import FAR, as_json, as_text, broken, content, failed, named, refused, whole
from helios.train.board.guard import ID, Guard, body
from helios.train.board.schema import LINES, parse, storable, strict
from helios.train.board.store import Store
from helios.train.board.uploads import LARGEST, PART, Uploads
from helios.train.records.journal import WITH_FITNESS

PAGE = Path(__file__).parent / "page"
for _type, _ending in (("text/javascript", ".js"), ("text/javascript", ".mjs"), ("text/css", ".css"),
                       ("font/woff2", ".woff2"), ("image/svg+xml", ".svg")):
    mimetypes.add_type(_type, _ending)  # whatever this machine thinks of them
LIMIT = 8 * 2**20  # bytes of a post
PING = 15  # seconds
ACTIVATIONS = "".join(f"export const {name} = {json.dumps(value)};\n" for name, value in {  # a part of the page
    "TABLE": {name: colour for name, (*_, colour) in activations.TABLE.items()}, "MORE": activations.MORE,
    **{name: getattr(activations, name) for name in ("MIXED", "MIXED_COLOUR", "FORMULAS", "FORMULAS_COLOUR", "SHOWN")},
}.items())
PAUSE = 0.1  # seconds between two looks of a stream, in which changes gather


class _Post(msgspec.Struct):
    """A post to /api/ingest. Its rows stay texts, so that they are kept as they were written."""

    run_id: str
    kind: str
    start: int | None = msgspec.field(default=None, name="from")
    rows: list[msgspec.Raw] = []
    cut: int | None = None


class _Checkpoint(msgspec.Struct):
    step: Annotated[int, msgspec.Meta(ge=-ingest.HIGHEST, le=ingest.HIGHEST)]
    val_loss: float | None = None
    bytes: Annotated[int, msgspec.Meta(ge=0, le=ingest.HIGHEST)] | None = None


class _About(msgspec.Struct):
    """The row of a post of the kind run."""

    config: dict[str, Any] | None = None
    summary: dict[str, Any] | None = None
    checkpoints: list[_Checkpoint] = []


class _Stream(EventSourceResponse):
    """A stream that ends when it is not read."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(SendTimeoutError):
            await super().__call__(scope, receive, send)


class Board:
    """The answers of a board. Those that read the database run in threads."""

    def __init__(self, store: Store) -> None:
        self.store, self.uploads = store, Uploads(store)
        self.waiting: set[asyncio.Event] = set()
        self.ended = asyncio.Event()

    def app(self, token: str | None, loopback: bool) -> Starlette:
        """Return the application. token, loopback: as Guard takes them."""
        get = lambda path, answer: Route(path, answer, methods=["GET"])
        one = "/api/runs/{run_id}"
        return Starlette(
            routes=[
                get("/api/health", self.health), get("/api/runs", self.runs), get("/api/stream", self.stream),
                Route("/api/ingest", self.ingest, methods=["POST"]),
                get(one, self.run), get(one + "/series", self.series), get(one + "/rows", self.rows),
                get(one + "/checkpoints", self.checkpoints), get("/api/experiments", self.experiments),
                get("/api/experiments/{experiment}", self.experiment),
                get("/api/experiments/{experiment}/journal", self.journal),
                *(get(f"{one}/{kind}", self._lines(kind)) for kind in LINES if kind != "metrics"),
                Route(one + "/files/{name}/parts/{number}", self.part, methods=["PUT"]),
                get(one + "/files/{name}/parts", self.parts),
                get(one + "/files/{name}", self.file), Route(one + "/files/{name}", self.finish, methods=["POST"]),
                get("/activations.js", self.activations),
                Mount("/", StaticFiles(directory=PAGE, html=True)),
            ],
            middleware=[Middleware(Guard, token=token, loopback=loopback)],
            exception_handlers={HTTPException: refused, sqlite3.Error: failed, OSError: failed, Exception: broken})

    async def listen(self) -> None:
        """Have the store's commits wake the streams."""
        loop = asyncio.get_running_loop()
        self.store.listener = lambda: loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for event in self.waiting:
            event.set()

    def end(self) -> None:
        """End the streams."""
        self.ended.set()
        self._wake()

    async def health(self, request: Request) -> Response:
        return as_json({"ok": True, "version": helios.__version__})

    async def activations(self, request: Request) -> Response:
        return Response(ACTIVATIONS, media_type="text/javascript")

    def runs(self, request: Request) -> Response:
        wanted = {key: value for key in ("status", "experiment") if (value := request.query_params.get(key))}
        q = request.query_params.get("q", "").lower()
        with self.store.reading() as db:
            found = queries.entries(db, self.store.locks)
        return as_json({"runs": [
            entry for entry in found if all(entry.get(key) == value for key, value in wanted.items())
            and (not q or any(q in str(value).lower() for value in entry.values()))]})

    def run(self, request: Request) -> Response:
        run_id = named(request, "run_id")
        with self.store.reading() as db:
            found = queries.run(db, self.store.locks, run_id)
        if found is None:
            raise HTTPException(404, f"no run {run_id}")
        return as_json(found)

    def series(self, request: Request) -> Response:
        run_id, query = named(request, "run_id"), request.query_params
        keys = list(dict.fromkeys(key for part in query.getlist("keys") for key in part.split(",") if key))
        px = whole(query, "px", 800, 1, 10_000)
        if any(not storable(key) for key in keys):
            raise HTTPException(400, "keys is not UTF-8")
        with self.store.reading() as db:
            self._known(db, run_id)
            found = series.series(db, run_id, keys, whole(query, "from"), whole(query, "to"), px)
        return as_json({"series": found})

    def rows(self, request: Request) -> Response:
        """Rows as they were written, which may be with NaN."""
        run_id, query = named(request, "run_id"), request.query_params
        with self.store.reading() as db:
            self._known(db, run_id)
            start, end = series.span(db, run_id, whole(query, "from"), whole(query, "to"))
            start = max(start, whole(query, "after", 0, 0))
            found, after = queries.rows(db, run_id, "metrics", start, end, whole(query, "limit", 1000, 1, 10_000))
        return as_text(f'{{"rows":[{",".join(found)}],"next":{json.dumps(after)}}}')

    def _lines(self, kind: str) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            run_id = named(request, "run_id")
            with self.store.reading() as db:
                self._known(db, run_id)
                found, _ = queries.rows(db, run_id, kind)
            return as_text(f'{{"rows":[{",".join(map(strict, found))}]}}')
        return answer

    def checkpoints(self, request: Request) -> Response:
        run_id = named(request, "run_id")
        with self.store.reading() as db:
            self._known(db, run_id)
            return as_json({"rows": queries.checkpoints(db, run_id)})

    def experiments(self, request: Request) -> Response:
        with self.store.reading() as db:
            return as_json({"experiments": journals.entries(db)})

    def experiment(self, request: Request) -> Response:
        key = named(request, "experiment")
        with self.store.reading() as db:
            found = journals.entries(db, key)
        if not found:
            raise HTTPException(404, f"no experiment {key}")
        return as_json({"overview": found[0], "measures": {name: m._asdict() for name, m in WITH_FITNESS.items()}})

    def journal(self, request: Request) -> Response:
        key, start = named(request, "experiment"), whole(request.query_params, "from", 0, 0)
        with self.store.reading() as db:
            if not journals.entries(db, key):
                raise HTTPException(404, f"no experiment {key}")
            found, after = queries.rows(db, key, "journal", start, limit=FAR)
        return as_text(f'{{"rows":[{",".join(map(strict, found))}],"next":{json.dumps(after)}}}')

    async def ingest(self, request: Request) -> Response:
        raw = await body(request, LIMIT)
        run_id, work = await run_in_threadpool(_writing, raw)
        try:
            return as_json({"next": await asyncio.wrap_future(self.store.submit(work))})
        except ingest.Gap as gap:
            return as_json({"next": gap.wanted, "error": f"{run_id}: {gap}"}, 409)

    async def part(self, request: Request) -> Response:
        named(request, "run_id"), named(request, "name")
        number = whole(request.path_params, "number", None, 0, LARGEST)
        size, sha256 = content(request.query_params)
        data, digest = await body(request, PART), request.headers.get("x-sha256", "")
        return as_json({"have": await run_in_threadpool(self.uploads.put, number, data, digest, size, sha256)})

    def parts(self, request: Request) -> Response:
        named(request, "run_id"), named(request, "name")
        return as_json({"have": self.uploads.have(*content(request.query_params))})

    async def finish(self, request: Request) -> Response:
        run_id, name = named(request, "run_id"), named(request, "name")
        try:
            about = parse((await body(request, PART)).decode())
        except ValueError:
            about = None
        if not isinstance(about, dict):
            raise HTTPException(400, "the body is no JSON object")
        size, sha256 = content(about)
        step = about.get("step")
        if step is not None and (type(step) is not int or abs(step) > ingest.HIGHEST):
            raise HTTPException(400, "step is no whole number")
        await run_in_threadpool(self.uploads.finish, run_id, name, size, sha256, step)
        return as_json({"href": f"/api/runs/{run_id}/files/{name}"})

    def file(self, request: Request) -> Response:
        run_id, name = named(request, "run_id"), named(request, "name")
        with self.store.reading() as db:
            path = self.uploads.path(db, run_id, name)
        if path is None:
            raise HTTPException(404, f"{run_id} has no file {name}")
        return FileResponse(path, media_type="application/octet-stream", filename=name)

    async def stream(self, request: Request) -> Response:
        runs, experiments = (frozenset(request.query_params.getlist(name)) for name in ("run", "experiment"))
        given = request.headers.get("last-event-id") or request.query_params.get("cursor")
        since = None if given is None else whole({"cursor": given}, "cursor", None, 0)
        return _Stream(self._messages(runs, experiments, since), ping=PING, sep="\n", send_timeout=PING)

    async def _messages(self, runs: frozenset[str], experiments: frozenset[str], since: int | None
                        ) -> AsyncIterator[ServerSentEvent]:
        changed = asyncio.Event()
        self.waiting.add(changed)
        try:
            if since is None:
                since = await run_in_threadpool(self._cursor)
                yield ServerSentEvent(json.dumps({"cursor": since}), event="hello", id=str(since))
            while not self.ended.is_set():
                changed.clear()
                messages, until = await run_in_threadpool(self._changes, since, runs, experiments)
                for message in messages:
                    yield ServerSentEvent(message.data, event=message.event, id=str(message.id))
                if until == since:
                    await changed.wait()
                    await asyncio.sleep(PAUSE)
                since = until
        finally:
            self.waiting.discard(changed)

    def _cursor(self) -> int:
        with self.store.reading() as db:
            return queries.cursor(db)

    def _changes(self, since: int, runs: frozenset[str], experiments: frozenset[str]
                 ) -> tuple[list[queries.Message], int]:
        with self.store.reading() as db:
            return queries.changes(db, self.store.locks, since, runs, experiments)

    def _known(self, db: sqlite3.Connection, run_id: str) -> None:
        if not db.execute("SELECT 1 FROM runs WHERE run_id = ?", (run_id,)).fetchone():
            raise HTTPException(404, f"no run {run_id}")


def _writing(raw: bytes) -> tuple[str, Callable[[sqlite3.Connection], Any]]:
    """Return the run that a post is about, and what writes it. Raises HTTPException where it cannot be used."""
    now = time.time()
    try:
        post = _post(raw)
        rows = [(line, parse(line)) for line in (bytes(row).decode() for row in post.rows)]
    except (ValueError, msgspec.MsgspecError) as error:
        raise HTTPException(400, f"cannot read the post: {error}") from None
    run_id, kind, start = post.run_id, post.kind, post.start
    if not ID.fullmatch(run_id):
        raise HTTPException(400, "run_id is none: letters, digits, _ . - and no more than 128 of them")
    if not all(isinstance(row, dict) for _, row in rows):
        raise HTTPException(400, "a row is no JSON object")
    if kind == "run":
        try:
            about = msgspec.convert(rows[-1][1], _About) if rows else None
        except msgspec.ValidationError as error:
            raise HTTPException(400, f"cannot use the row: {error}") from None
        return run_id, lambda db: _run(db, run_id, post.cut, about, now)
    if kind not in LINES:
        raise HTTPException(400, f"no kind {kind[:40]!r}; there are run, {', '.join(LINES)}")
    if start is None or not 0 <= start < FAR:
        raise HTTPException(400, "from is no row number")
    return run_id, lambda db: _put(db, run_id, kind, start, rows, now)


def _put(db: sqlite3.Connection, run_id: str, kind: str, start: int, rows: list[ingest.Row], now: float) -> int:
    ingest.put(db, run_id, kind, start, rows, now)
    return start + len(rows)


def _run(db: sqlite3.Connection, run_id: str, cut: int | None, about: _About | None, now: float) -> dict[str, int]:
    if cut is not None:
        ingest.cut(db, run_id, max(-FAR, min(cut, FAR)), now)
    if about is not None:
        checkpoints = [msgspec.structs.asdict(c) for c in about.checkpoints]
        ingest.about(db, run_id, about.config, about.summary, checkpoints, now)
    return ingest.counts(db, run_id)


def _post(raw: bytes) -> _Post:
    try:
        return msgspec.json.decode(raw, type=_Post)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        value = parse(raw.decode())
        if isinstance(value, dict) and isinstance(value.get("rows"), list):
            value["rows"] = [msgspec.Raw(line.encode()) for line in _rows(raw.decode())]
        return msgspec.convert(value, _Post)


def _rows(post: str) -> list[str]:
    """Return the texts of the rows in a post, a JSON object with rows, as Python's json reads it."""
    decode = json.JSONDecoder().raw_decode
    found: list[str] = []

    def begin(at: int) -> int:
        while post[at] in " \t\r\n,:":
            at += 1
        return at

    key, at = "", post.index("{") + 1
    while key != "rows":
        key, at = decode(post, begin(at))
        at = begin(at)
        if key != "rows":
            _, at = decode(post, at)
    while post[at := begin(at + 1 - bool(found))] != "]":
        _, end = decode(post, at)
        found.append(post[at:end])
        at = end
    return found
