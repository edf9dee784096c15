"""A board from its start to its end: the store, the watcher of run directories and the server."""

from __future__ import annotations

import asyncio
import signal
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from helios.errors import UserError
from helios.train.board import historic, queries
from helios.train.board.guard import Patient, is_loopback
from helios.train.board.server import Board
from helios.train.board.store import Store
from helios.train.board.uploads import Uploads
from helios.train.board.watch import Watcher

FAREWELL = 3  # seconds that answers under way have at the end


class _Server(uvicorn.Server):
    """A server that leaves signals to `serve`."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(runs: Path, db: Path, host: str, port: int, token: str | None, say: Callable[[str], object]) -> None:
    """Serve the runs in the folder `runs`, and those that are sent, until SIGINT or SIGTERM.

    say: told the address once it answers. Raises UserError where it cannot begin, and KeyboardInterrupt after SIGINT.
    """
    listener, loopback = _listen(host, port, token)
    with listener:
        try:
            runs.mkdir(parents=True, exist_ok=True)
            next(runs.iterdir(), None)
        except OSError as error:
            raise UserError(f"cannot read the folder {runs}: {error.strerror}") from error
        store = Store(db)
        try:
            store.write(historic.put)
            Uploads(store).tidy()
            watcher = Watcher(runs, store)
            watcher.start()
            try:
                got = asyncio.run(_serve(store, watcher, listener, host, token, loopback, say))
            finally:
                watcher.stop()
        except sqlite3.Error as error:  # of the reads and writes before all is ready; later ones are answered
            raise UserError(f"cannot use {db} as the board's database: {error}; give another --db") from error
        finally:
            store.close()
    if got == signal.SIGINT:
        raise KeyboardInterrupt


async def _serve(store: Store, watcher: Watcher, listener: socket.socket, host: str, token: str | None, loopback: bool,
                 say: Callable[[str], object]) -> signal.Signals | None:
    board = Board(store)
    server = _Server(uvicorn.Config(
        board.app(token, loopback), http=Patient, ws="none", lifespan="off", log_level="critical", access_log=False,
        server_header=False, proxy_headers=False, timeout_graceful_shutdown=FAREWELL))
    got: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        got.append(number)
        board.end()
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    await board.listen()
    serving = asyncio.create_task(server.serve([listener]))
    while not (server.started or serving.done()):
        await asyncio.sleep(0.01)
    with store.reading() as db:
        there = {entry["run_id"] for entry in queries.entries(db, {}) if not entry["historic"]}
    name = f"[{host}]" if ":" in host else host
    count = len(there | set(watcher.owners))
    say(f"board of {count:,} run{'s' * (count != 1)} at http://{name}:{listener.getsockname()[1]}")
    await serving
    return got[0] if got else None


def _listen(host: str, port: int, token: str | None) -> tuple[socket.socket, bool]:
    """Return the socket, and whether it is this machine's own. Raises UserError where it cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        loopback = is_loopback(str(address[0]))
        if not loopback and token is None:
            raise UserError(f"--host {host} is seen by other machines, and so needs a token; give --token-file FILE or "
                            f"set HELIOS_TOKEN")
        # With the protocol named, asyncio sets TCP_NODELAY, without which an answer takes 40 ms more.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen()  # until then, another could take the port as well
        except OSError:
            listener.close()
            raise
        return listener, loopback
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"cannot listen at {host} port {port}: {why}; give another --host or --port") from error
