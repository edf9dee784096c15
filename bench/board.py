"""The speed of the board, by requests to a server process, beside trackio's storage where that is installed."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import urllib3

from helios.bench.report import processor
from helios.bench.step import Training
from helios.errors import UserError
from helios.train.config import resolve
from helios.train.device import open_backend
from helios.train.markdown import YES_NO, figure, table
from helios.train.records.layout import CONFIG, EVENTS, METRICS
from helios.train.records.records import COLUMNS
from helios.train.records.reporter import reporting

TOKEN = "measured"
POST = 500  # rows in a post
PX = 800  # buckets of a series
SETTLE = 1.0  # seconds in which a reporter connects, once a run, and a device cools down as much without one
SPIKE, SPIKE_LOSS = 0.61803, 99.0  # where in a run, as a share of its steps, one loss is that high


class Size(NamedTuple):
    """How much is measured."""

    ingest: int  # rows
    long: int  # rows of the long run
    runs: int  # in the list
    shown: int  # runs on screen
    points: int  # of each
    times: int  # that a request is repeated; the median counts
    turns: int  # of steps that are reported and as many that are not
    steps: int  # in a turn


FULL, QUICK = Size(100_000, 1_000_000, 1000, 50, 2000, 21, 12, 20), Size(2_000, 4_000, 20, 4, 50, 3, 1, 2)


class Figure(NamedTuple):
    """One line of the result."""

    what: str
    value: float
    unit: str
    limit: float | None = None  # what is wanted: at least that many rows/s, at most that of anything else
    peer: float | None = None  # trackio's figure

    @property
    def ratio(self) -> float | None:
        """Return how many times better than the peer's the figure is."""
        if not self.peer or not self.value:
            return None
        return self.value / self.peer if self.unit == "rows/s" else self.peer / self.value

    @property
    def met(self) -> bool | None:
        """Return whether the limit is kept; None: there is none."""
        if self.limit is None:
            return None
        return self.value >= self.limit if self.unit == "rows/s" else self.value <= self.limit


def row(step: int, steps: int) -> dict[str, Any]:
    """Return a row as trainings write them, of about 600 bytes."""
    loss = SPIKE_LOSS if step == round(SPIKE * steps) else 8.0 - 3.0 * step / steps + 0.1 * math.sin(step)
    return dict.fromkeys(COLUMNS) | {
        "step": step, "loss": loss, "val_loss": loss + 0.05 if step % 100 == 0 else None,
        "lr": 3e-4 * (1 - step / steps), "grad_norm": 1.0 + 0.3 * math.cos(step), "elapsed_ms": 716.2834 * step,
        "ms_per_iter": 716.2834 + step % 7,
        "tokens_per_sec": 2859.1 + step % 11, "clip_coef": 0.87, "clip_pct": 31.0, "gpu_vram_used_mb": 412.03125,
        "gpu_vram_total_mb": 23034.0, "gpu_mem_pool_mb": 388.5, "gpu_ops_count": 128, "timing_data_ms": 0.0416,
        "timing_flush_ms": 701.0625, "cusum_grad": 0.41, "cusum_clip": 0.0, "cusum_tps": 1.25, "cusum_alerts": 0}


def about(run_id: str, steps: int) -> dict[str, Any]:
    """Return a config.json."""
    return {"run_id": run_id, "created": "2026-01-01T00:00:00Z", "parameters": 6_838_784, "chat": True,
            "model": {"n_layer": 6, "n_embd": 256, "n_head": 8, "block_size": 256, "activation": "gelu"},
            "train": {"steps": steps, "lr": 3e-4}, "data": {"data": "chat.txt"}, "device": {"name": "made up"}}


class Client:
    """Requests to a board."""

    def __init__(self, url: str) -> None:
        self.url, self.pool = url, urllib3.PoolManager()
        self.headers = {"Authorization": f"Bearer {TOKEN}"}

    def get(self, path: str) -> bytes:
        return self._answer("GET", path, None)

    def post(self, run_id: str, kind: str, start: int, rows: list[Any]) -> None:
        body = json.dumps({"run_id": run_id, "kind": kind, "from": start, "rows": rows}).encode()
        self._answer("POST", "/api/ingest", body)

    def fill(self, run_id: str, steps: int) -> float:
        """Send a run of that many rows; return the seconds that the posts took."""
        self.post(run_id, "run", 0, [{"config": about(run_id, steps), "summary": None, "checkpoints": []}])
        took = 0.0
        for start in range(0, steps, POST):
            rows = [row(step + 1, steps) for step in range(start, min(start + POST, steps))]
            began = time.perf_counter()
            self.post(run_id, "metrics", start, rows)
            took += time.perf_counter() - began
        return took

    def ms(self, path: str, times: int) -> float:
        """Return the median milliseconds of a request."""
        took = []
        for _ in range(times):
            began = time.perf_counter()
            self.get(path)
            took.append(1000 * (time.perf_counter() - began))
        return median(took)

    def stream(self, query: str) -> Generator[bytes, None, None]:
        """Return the lines of the stream after its first message, which has come."""
        answer = self.pool.request("GET", f"{self.url}/api/stream?{query}", preload_content=False,
                                   headers=self.headers)

        def lines() -> Generator[bytes, None, None]:
            rest = b""
            try:
                for chunk in answer.stream(2**16):
                    *whole, rest = (rest + chunk).split(b"\n")
                    yield from whole
            finally:
                answer.close()

        found = lines()
        next(line for line in found if line.startswith(b"event: hello"))
        return found

    def _answer(self, method: str, path: str, body: bytes | None) -> bytes:
        found = self.pool.request(method, self.url + path, body=body, headers=self.headers, retries=False)
        if found.status != 200:
            raise UserError(f"the board answers {path} with {found.status}: {found.data[:200]!r}")
        return found.data


@contextmanager
def serving(runs: Path) -> Iterator[tuple[str, float]]:
    """A board of the runs in a folder, in a process of its own: its address, and the seconds until it was ready."""
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-m", "helios.cli.board", "--runs", str(runs), "--port", "0"],
                          stdout=subprocess.PIPE, text=True, env=os.environ | {"HELIOS_TOKEN": TOKEN}) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not (found := re.search(r"http://\S+", line)):
                raise UserError(f"the board did not start: {line.strip()!r}")
            yield found[0], time.perf_counter() - began
        finally:
            process.terminate()


def measure(size: Size, peer: bool, say: Callable[[str], None]) -> list[Figure]:
    """Return all figures. peer: whether trackio's are measured, too, in this process; else they are None."""
    folder = Path(tempfile.mkdtemp(prefix="helios-board-"))
    try:
        there = Trackio(folder / "trackio") if peer else None
        figures: list[Figure] = []
        with serving(_directories(folder / "runs", size.runs)) as (url, ready):
            client = Client(url)
            figures.append(Figure(f"ready, with {size.runs:,} run directories", 1000 * ready, "ms", 2000))
            figures += _list(client, size)
            say("rows are written")
            figures.append(_ingest(client, there, size))
            figures += _long(client, there, size)
            say("an update of several runs")
            figures += _update(client, there, size)
            figures.append(_fresh(client, folder / "runs", size))
        say("steps that are reported")
        with serving(_directories(folder / "none", 0)) as (url, _):
            figures += _reported(url, folder / "reported", size, say)
        return figures
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _directories(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        path = folder / f"r{i}"
        path.mkdir()
        (path / CONFIG).write_text(json.dumps(about(f"run_{i}", 3)))
        (path / METRICS).write_text("".join(json.dumps(row(step, 3)) + "\n" for step in (1, 2, 3)))
        (path / EVENTS).write_text("".join(json.dumps(
            {"step": 3, "time": "2026-01-01T00:00:00Z", "kind": kind, "message": kind}) + "\n"
            for kind in ("run_start", "run_complete")))
    return folder


def _list(client: Client, size: Size) -> Iterator[Figure]:
    began = time.perf_counter()
    while len(json.loads(client.get("/api/runs"))["runs"]) < size.runs:
        time.sleep(0.02)
    yield Figure(f"{size.runs:,} run directories read", 1000 * (time.perf_counter() - began), "ms")
    yield Figure(f"list of {size.runs:,} runs", client.ms("/api/runs", size.times), "ms", 50)


def _ingest(client: Client, there: Trackio | None, size: Size) -> Figure:
    rate, theirs = [], []
    for i in range(3):  # in turns
        rate.append(size.ingest / client.fill(f"ingest_{i}", size.ingest))
        if there:
            theirs.append(size.ingest / there.fill(f"ingest_{i}", size.ingest))
    return Figure(f"rows taken in, {POST} a post", median(rate), "rows/s", 20_000, median(theirs) if there else None)


def _long(client: Client, there: Trackio | None, size: Size) -> Iterator[Figure]:
    client.fill("long", size.long)
    path = f"/api/runs/long/series?keys=loss&px={PX}"
    theirs, seen = None, None
    if there:
        there.fill("long", size.long)
        theirs, seen = there.read("long", size.times)
    yield Figure(f"series of {size.long:,} rows at {PX} px", client.ms(path, size.times), "ms", 20, theirs)
    middle = f"{path}&from={size.long // 3}&to={size.long // 2}"
    yield Figure("the same, zoomed to a sixth", client.ms(middle, size.times), "ms", 20)
    found = json.loads(client.get(path))["series"]["loss"]["max"]
    yield Figure("highest loss in that series; one step has 99", max(x for x in found if x is not None), "nats",
                 peer=seen)


def _update(client: Client, there: Trackio | None, size: Size) -> Iterator[Figure]:
    """The bytes that a page takes in when each of several runs on screen has one new row."""
    names = [f"shown_{i}" for i in range(size.shown)]
    for name in names:
        client.fill(name, size.points)
    query = "&".join(f"run={name}" for name in names)
    lines = client.stream(query)
    for name in names:
        client.post(name, "metrics", size.points, [row(size.points + 1, size.points)])
    came, took = set[str](), 0
    while len(came) < size.shown:
        line = next(lines)
        took += len(line) + 1
        if line.startswith(b"data: ") and b'"rows"' in line:
            came.add(json.loads(line[6:])["run_id"])
    lines.close()
    theirs = there.update(names, size.points) if there else None
    yield Figure(f"an update of {size.shown} runs of {size.points:,} rows, one new row each", took / 1024, "KiB",
                 peer=theirs)


def _fresh(client: Client, folder: Path, size: Size) -> Figure:
    """The time from a row's writing into the directory of a run under way to its arrival in the stream."""
    path, took = folder / "r0", []
    lines = client.stream("run=run_0")
    with open(path / EVENTS, "a") as file:
        file.write('{"step": 3, "time": "2026-01-01T00:00:00Z", "kind": "resumed", "message": "goes on"}\n')
    next(line for line in lines if b"goes on" in line)
    for step in range(4, 4 + size.times):
        began = time.perf_counter()
        with open(path / METRICS, "a") as file:
            file.write(json.dumps(row(step, 100)) + "\n")
        next(line for line in lines if line.startswith(b"data: ") and f'"step": {step},'.encode() in line)
        took.append(1000 * (time.perf_counter() - began))
    lines.close()
    return Figure("from a row's writing to its arrival in the stream, at worst", max(took), "ms", 1000)


def _reported(url: str, folder: Path, size: Size, say: Callable[[str], None]) -> Iterator[Figure]:
    """The time of a training step that is reported, as a multiple of one that is not, in turns within one training, and
    what of the processor's time the reporting thread takes in it."""
    os.environ["HELIOS_TOKEN"] = TOKEN
    config = resolve("quickstart")
    training, rng = Training(config, open_backend("auto", None, say)), np.random.default_rng(0)
    shape = (2, config.train.batch_size, config.model.block_size)
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(about("reported", 2 * size.turns * size.steps)))
    ms, ratios, busy, wall = [0.0, 0.0], list[float](), 0.0, 0.0
    with open(folder / METRICS, "a", buffering=1) as file:
        for turn in range(2 * size.turns + 2):  # the first two prepare kernels
            took, reported = list[float](), turn % 2 == 1
            with reporting(folder, url if reported else "none", say) as begin:
                begin()
                time.sleep(SETTLE)
                before, start = _busy("reporter"), time.perf_counter()
                for _ in range(size.steps):
                    tokens, targets = rng.integers(0, config.model.vocab_size, shape).astype(np.int32)
                    began = time.perf_counter()
                    training.step(tokens, targets)
                    file.write(json.dumps(row(training.steps, 2 * size.turns * size.steps)) + "\n")
                    took.append(time.perf_counter() - began)
                if reported:
                    busy += _busy("reporter") - before
                    wall += time.perf_counter() - start
            ms[reported] = median(took)
            if reported and turn > 1:
                ratios.append(ms[True] / ms[False])
    yield Figure("a reported step of quickstart, against one that is not, with the board on the same cores",
                 median(ratios), "×", 1.005)
    yield Figure("the reporting thread's share of a core meanwhile", 100 * busy / wall, "%", 0.5)


def _busy(name: str) -> float:
    """Return the seconds of processor time that this process's threads of that name have had, as Linux counts them."""
    ids = [thread.native_id for thread in threading.enumerate() if thread.name == name]
    return sum(int(Path(f"/proc/self/task/{id}/schedstat").read_text().split()[0]) for id in ids) / 1e9


class Trackio:
    """trackio's storage, used in this process, without its server: what its page asks for, as it asks."""

    POINTS = 3000  # that its page asks for of each run

    def __init__(self, folder: Path) -> None:
        os.environ["TRACKIO_DIR"] = str(folder)
        try:
            from trackio.sqlite_storage import SQLiteStorage
        except ImportError as error:
            raise UserError("trackio is not installed; pip install trackio, or leave --peer out") from error
        self.storage = SQLiteStorage

    def fill(self, name: str, steps: int) -> float:
        took = 0.0
        for start in range(0, steps, POST):
            at = range(start + 1, min(start + POST, steps) + 1)
            rows = [{k: v for k, v in row(step, steps).items() if k != "step"} for step in at]
            began = time.perf_counter()
            self.storage.bulk_log("board", name, rows, list(at), log_ids=[f"{name}-{i}" for i in at])
            took += time.perf_counter() - began
        return took

    def read(self, name: str, times: int) -> tuple[float, float]:
        """Return the median milliseconds of reading a run as its page does, and the highest loss that comes."""
        took = []
        for _ in range(times):
            began = time.perf_counter()
            rows = self.storage.get_logs("board", name, max_points=self.POINTS)
            text = json.dumps(rows)
            took.append(1000 * (time.perf_counter() - began))
        return median(took), max(row["loss"] for row in json.loads(text))

    def update(self, names: list[str], points: int) -> float:
        """Return the KiB that its page fetches when these runs have one new row each."""
        for name in names:
            self.fill(name, points)
        asked = [{"run": name, "run_id": name} for name in names]
        found = self.storage.get_logs_batch("board", asked, max_points=self.POINTS)
        assert all(len(one["logs"]) == points for one in found)
        return len(json.dumps(found)) / 1024


TITLES = ("what", "figure", "unit", "wanted", "met", "trackio", "times better")


def cells(figures: Iterable[Figure]) -> list[list[str]]:
    """Return the rows of the table of the figures, under TITLES."""
    return [[f.what, figure(f.value), f.unit, "–" if f.limit is None else f"{f.limit:,.7g}", YES_NO[f.met],
             figure(f.peer), "–" if f.ratio is None or f.unit == "nats" else f"{f.ratio:,.1f}"] for f in figures]


def markdown(figures: Iterable[Figure]) -> str:
    """Return a page of the figures."""
    where = (f"{processor()}; Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}; "
             f"{datetime.now(UTC):%Y-%m-%d}. Medians; requests to a server process on this machine.")
    peer = ("trackio's figures are those of its storage in the measuring process, without its server: rows written by "
            f"its bulk_log, {POST} at a time, then what its page asks for, all rows of a run, of which it sends "
            f"{Trackio.POINTS:,}, and once more every few seconds.")
    return "\n".join(["# The board", "", where, *(["", peer] if any(f.peer for f in figures) else []), "",
                      *table(TITLES, cells(figures), words={"unit", "met"})]) + "\n"
