"""Trainings on a Ray cluster, whose nodes need not see the experiment's directory or its texts."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import socket
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read as Ray is imported; nothing is reported to anyone

import ray
from filelock import FileLock, Timeout
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import helios
from helios.errors import UserError
from helios.files import write_atomic
from helios.host import cache_dir
from helios.train import checkpoint
from helios.train.config import TrainConfig
from helios.train.evolve import shipping
from helios.train.evolve.executors.processes import devices, share_of_threads
from helios.train.evolve.shipping import Package
from helios.train.evolve.state import Result
from helios.train.evolve.training import begun, failed
from helios.train.evolve.trainings import Job, Results
from helios.train.evolve.worker import STARTS, WAIT, Workers
from helios.train.progress import Display
from helios.train.records.journal import RUNS
from helios.train.records.layout import CHECKPOINTS
from helios.train.run import Run
from helios.train.signals import caught, told

VULKAN = "vulkan"  # the resource of a node with Vulkan devices, as many as it has
PORT = 10001  # of Ray's server for clients, where an address names none
OWN = ("auto", "local")  # addresses that name no host
TIMEOUT = 5.0  # seconds for an address to answer
MARK = "cluster"  # file in an experiment's directory, by which a node that sees the directory knows it


class Order(NamedTuple):
    """What a node is asked for. mark: content of MARK. threads: None: as many as the node has. begun: the run directory
    where there is one. sent: digest and content of texts, by name. parents: the same of runs, by the path of the
    checkpoint that trainings of this round begin with. Contents are references, to fetch where needed."""

    job: Job
    folder: Path
    mark: str
    version: str
    threads: int | None
    begun: list[Any]
    sent: Mapping[str, tuple[str, list[Any]]]
    parents: Mapping[str, tuple[str, list[Any]]]


class Answer(NamedTuple):
    """What a node answers. run: its run directory, without checkpoints that have been sent; None: it was written in
    place. refused: why there is no result."""

    result: Result | None
    run: Package | None = None
    refused: str = ""
    warnings: Sequence[str] = ()


class Desk:
    """An actor beside the driver, for what nodes send while they train."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[str, Package] | None] = asyncio.Queue()

    async def put(self, item: tuple[str, Package] | None) -> None:
        await self.queue.put(item)

    async def take(self) -> tuple[str, Package] | None:
        return await self.queue.get()


class OnRay:
    """Makes trainings on a Ray cluster, `workers` at a time, by default as many as there is room for.

    address: HOST[:PORT], that of a cluster's server for clients; "auto", the cluster of this machine, or that of
    RAY_ADDRESS; "local", a new one on this machine; "", as auto, and where there is none, as local. What nodes train
    arrives in `folder` with every checkpoint.
    """

    def __init__(self, folder: Path, workers: int | None, address: str, display: Display) -> None:
        self.folder, self.workers, self.display = folder, workers, display
        self.mark = secrets.token_hex(8)
        self.sent: dict[str, tuple[str, list[Any]]] | None = None
        self.parents: dict[str, tuple[str, list[Any]]] = {}
        self.interrupted = False
        self.address = os.environ.get("RAY_ADDRESS", address) if address in ("", "auto") else address
        if address not in ("", *OWN):
            self.address = f"ray://{address}" + (f":{PORT}" if not re.search(r":\w*$", address) else "")
        self.own = self.address == "local"  # whether the cluster is this process's
        _check_answers(self.address)

    def __call__(self, jobs: Sequence[Job]) -> Results:
        self._connect(jobs)
        new = {t.init_from for job in jobs if (t := job.config.train).init_from and not begun(self._path(job))}
        self.parents = {place: (found[0], [ray.put(found[1])]) for place in sorted(new)
                        if (found := shipping.parent(Path(place)))}
        waiting, running, lost = deque(range(len(jobs))), dict[Any, int](), Counter[int]()
        taking = self.desk.take.remote()
        with caught(self._stop):
            try:
                while waiting or running:
                    while waiting and len(running) < (self.workers or len(jobs)):
                        i = waiting.popleft()
                        running[self._asked(jobs[i], jobs)] = i
                    for ref in ray.wait([*running, taking], timeout=1.0)[0]:
                        self._put_down(taking, {jobs[i].name for i in running.values()})
                        taking = self.desk.take.remote()
                        if ref not in running:
                            continue
                        i = running.pop(ref)
                        result = self._result(ref, jobs[i], lost[i])
                        if result is None:
                            lost[i] += 1
                            waiting.appendleft(i)
                            continue
                        yield i, result
                    if self.interrupted:
                        raise KeyboardInterrupt
            finally:
                self._end([*running], taking, {jobs[i].name for i in running.values()})

    def _path(self, job: Job) -> Path:
        return self.folder / RUNS / job.name

    def _connect(self, jobs: Sequence[Job]) -> None:
        """Join or start the cluster, and put there what all trainings read. Raises UserError."""
        if self.sent is not None:
            return
        if not ray.is_initialized():
            try:
                self._join(jobs[0].config.train)
            except (ConnectionError, ValueError, RuntimeError) as error:
                hint = "; where it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
                raise UserError(f"cannot join a Ray cluster: {' '.join(str(error).split())}"
                                f"{hint * self.address.startswith('ray://')}") from error
        self.room = ray.cluster_resources()
        if VULKAN not in self.room and not self.own:
            self.display.say(f"no node of the cluster has the resource {VULKAN}: trainings are given processors alone; "
                             f"start nodes that have devices with: ray start --resources '{{\"{VULKAN}\": 1}}'")
        # Softly, it would go to a node that trains, and be lost with that.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.desk = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here).remote()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / MARK, methodcaller("write", self.mark.encode()))
        read = shipping.needed(Run.create(jobs[0].config, self.folder).config.data)
        self.sent = {name: (shipping.digest(content), [ray.put(content)]) for name, content in read.items()}

    def _join(self, t: TrainConfig) -> None:
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self.address != "local":
            try:
                ray.init(self.address or "auto", **quiet)
                return
            except ConnectionError:
                if self.address:
                    raise
        self.own = True
        gpus = devices(t.device) if t.backend != "cpu_ref" else []
        ray.init("local", include_dashboard=False, resources={VULKAN: len(gpus)} if gpus else {}, **quiet)

    def _asked(self, job: Job, jobs: Sequence[Job]) -> Any:
        """Have a training made, and return the reference of its Answer."""
        assert self.sent is not None
        there = shipping.packed(self._path(job))
        job = job._replace(config=Run.create(job.config, self.folder).config)  # with paths as they are here
        threads = None if VULKAN in self.room else threads_of(ray.nodes(), min(len(jobs), self.workers or len(jobs)))
        order = Order(job, self.folder, self.mark, helios.__version__, threads, [ray.put(there)] if there else [],
                      self.sent, self.parents)
        return ray.remote(_made).options(
            max_retries=0, name=job.name, scheduling_strategy="SPREAD", num_cpus=threads or 1,
            resources={} if threads else {VULKAN: 1}).remote(order, self.desk)

    def _result(self, ref: Any, job: Job, lost: int) -> Result | None:
        """Return a training's result; None where its node was lost, and it has to be asked for again."""
        try:
            answer: Answer = ray.get(ref)
        except RayTaskError:
            raise
        except RayError as error:
            starts, how = job.config.train.retries + STARTS, re.split(r"\.\s|\n", str(error))[0]
            left = lost + 1 < starts
            self.display.warn(f"warning: {job.name}: {type(error).__name__}: {how}" + "; it goes on elsewhere" * left)
            return None if left else failed(job, f"its node was lost {starts} times, lastly by {type(error).__name__}")
        for line in answer.warnings:
            self.display.warn(line)
        if answer.refused:
            raise UserError(answer.refused)
        if answer.run:
            shipping.unpack(answer.run, self._path(job))
        return answer.result

    def _put_down(self, taking: Any, live: set[str]) -> None:
        """Write what nodes have sent by now, if it is of runs that are `live`. taking: the reference of the first."""
        self.desk.put.remote(None)
        while (item := ray.get(taking, timeout=WAIT)) is not None:
            if item[0] in live:
                shipping.unpack(item[1], self.folder / RUNS / item[0])
            taking = self.desk.take.remote()

    def _stop(self, number: int) -> None:
        told("stopping after these steps")
        self.interrupted = True

    def _end(self, running: Sequence[Any], taking: Any, live: set[str]) -> None:
        """End trainings that are under way, and put down what they still send."""
        with suppress(RayError):
            for ref in running:
                ray.cancel(ref)
            if running:
                ray.wait([*running], num_returns=len(running), timeout=WAIT)
            self._put_down(taking, live)


def threads_of(nodes: Sequence[Mapping[str, Any]], trainings: int) -> int:
    """Return how many processors each of so many trainings at a time has, on nodes as Ray lists them. Ray leaves out
    what a node has none of, as a head that only directs."""
    cpus = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
    return max(1, min(sum(cpus) // trainings, min(filter(None, cpus), default=1)))


def _check_answers(address: str) -> None:
    """Raise UserError where nothing answers at the address of a host. Ray itself would try for minutes."""
    if address in ("", *OWN):
        return
    try:
        host = urlsplit(address if "://" in address else f"ray://{address}")
        socket.create_connection((host.hostname, host.port or PORT), TIMEOUT).close()
    except (OSError, ValueError) as error:
        raise UserError(f"no Ray cluster answers at {address} ({error}); give the address of a head node's client "
                        f"server, as ray://HOST:{PORT}") from None


def _made(order: Order, desk: Any) -> Answer:
    """Make a training on this node."""
    if helios.__version__ != order.version:
        return Answer(None, refused=f"node {ray.util.get_node_ip_address()} has helios {helios.__version__}, and the "
                                    f"experiment runs with {order.version}; install the same on all nodes")
    said: list[str] = []
    workers, name = Workers(said.append), order.job.name
    env = share_of_threads(order.threads, 1) if order.threads else {}
    try:
        with _device(order) as device:
            sent = _fetched(order)
            if _sees(order):
                return Answer(workers.made(order.job, order.folder, env | device, sent), warnings=said)
            sent |= _parent(order)
            (scratch := cache_dir() / "trainings").mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                path, known = Path(folder) / RUNS / name, set[str]()
                if order.begun:
                    shipping.unpack(begun := ray.get(order.begun[0]), path)
                    known |= {*begun.checkpoints}

                def look(always: bool = False) -> None:
                    there = {found.name for found in checkpoint.directories(path)}
                    if (always or there - known) and (new := shipping.packed(path, known)):
                        ray.get(desk.put.remote((name, new)))
                        known.update(new.checkpoints)

                try:
                    result = workers.made(order.job, Path(folder), env | device, sent, look)
                except KeyboardInterrupt:
                    look(always=True)
                    raise
                return Answer(result, shipping.packed(path, known), warnings=said)
    except UserError as error:
        return Answer(None, refused=str(error), warnings=said)


def _sees(order: Order) -> bool:
    """Return whether this node sees the experiment's directory."""
    with suppress(OSError):
        return (order.folder / MARK).read_text() == order.mark
    return False


def _fetched(order: Order) -> dict[str, str]:
    """Return the files of this machine that have what a training reads, by name."""
    for digest, content in order.sent.values():
        if not (path := shipping.place(digest)).exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, methodcaller("write", ray.get(content[0])))
    return {name: str(shipping.place(digest)) for name, (digest, _) in order.sent.items()}


def _parent(order: Order) -> dict[str, str]:
    """Return the checkpoint of this machine that the training begins with, by its name, if it does with one."""
    if (name := order.job.config.train.init_from or "") not in order.parents:
        return {}
    found, content = order.parents[name]
    path = shipping.kept(found, lambda: ray.get(content[0]), {one for one, _ in order.parents.values()},
                         cache_dir() / "parents" / order.job.about["experiment"])
    return {name: str(path / CHECKPOINTS / Path(name).name)}


@contextmanager
def _device(order: Order) -> Iterator[dict[str, str]]:
    """Hold one of several GPUs of this node that no other training has, and yield the variables that choose it."""
    t = order.job.config.train
    found = devices(t.device) if order.threads is None and t.backend != "cpu_ref" else []
    for index in found if len(found) > 1 else ():
        with suppress(Timeout), FileLock(cache_dir() / f"device-{index}.lock", timeout=0):
            yield {"HELIOS_DEVICE": index}
            return
    yield {}
