"""A training in a process of its own: what that process does, and how another has it done.

The process reads its order, a line of JSON, from standard input, and ends at once where that comes to its end, for then
whoever started it is gone; so a directory is free as soon as its driver is. The last line that it prints is the answer.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from helios.errors import UserError
from helios.train import texts
from helios.train.config import resolve
from helios.train.evolve.state import Result
from helios.train.evolve.stops import StopsConfig
from helios.train.evolve.training import failed, train
from helios.train.evolve.trainings import Job
from helios.train.progress import Display

STARTS = 3  # of a process that is killed, more than the run's `retries`
WAIT = 20.0  # seconds that a process has to write its checkpoint where nobody waits longer


def main() -> None:
    """Make the training that standard input tells."""
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    texts.sent.update(order["sent"])
    given = order["job"]
    job = Job(**given | {"config": resolve(base=given["config"]), "stops": StopsConfig.from_dict(given["stops"])})
    answer: dict[str, Any]
    try:
        answer = {"result": train(job, Path(order["folder"]), Display(quiet=True)).to_json()}
    except UserError as error:
        answer = {"refused": str(error)}
    except KeyboardInterrupt:
        answer = {"interrupted": True}
    print(json.dumps(answer), flush=True)


def _end_with_parent() -> None:
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    os._exit(1)


class Workers:
    """Processes that make trainings, started from any thread; `stop` ends them all.

    said: is told what a process warns of, each warning once.
    """

    def __init__(self, said: Callable[[str], object]) -> None:
        self.said, self.known = said, set[str]()
        self.stopping = False
        self.live: set[subprocess.Popen[bytes]] = set()

    def stop(self) -> None:
        """Have the trainings write their checkpoints and end; asked again, end at once. Whoever waits for one gets a
        KeyboardInterrupt."""
        again, self.stopping = self.stopping, True  # first, for who joins the living afterwards looks at it
        for process in tuple(self.live):
            process.send_signal(signal.SIGKILL if again else signal.SIGTERM)

    def made(self, job: Job, folder: Path, env: Mapping[str, str] | None = None, sent: Mapping[str, str] | None = None,
             look: Callable[[], object] | None = None, pause: float = 0.2) -> Result:
        """Have a training made in the experiment's folder, and go on from its checkpoint where its process dies.

        env: variables of the process besides those of this one. sent: see texts.sent. look: called every `pause`
        seconds. Raises UserError for what is not the candidate's fault, and KeyboardInterrupt where it was stopped.
        """
        values = job._asdict() | {"config": job.config.to_dict(), "stops": job.stops.to_dict()}
        order = {"job": values, "folder": str(folder), "sent": sent or {}}
        starts = job.config.train.retries + STARTS
        for left in reversed(range(starts)):
            answer, how = ({}, "") if self.stopping else self._asked(order, env or {}, look, pause)
            if "result" in answer:
                return msgspec.convert(answer["result"], Result)
            if "refused" in answer:
                raise UserError(answer["refused"])
            if self.stopping:
                raise KeyboardInterrupt
            self.said(f"warning: {job.name}: its process ended {how}" + ("; it goes on in another" if left else ""))
        return failed(job, f"its process ended {starts} times, lastly {how}")

    def _asked(self, order: Mapping[str, Any], env: Mapping[str, str], look: Callable[[], object] | None, pause: float
               ) -> tuple[dict[str, Any], str]:
        """Return a process's answer, empty where it gave none, and how it ended."""
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)  # so that it finds this very package
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, subprocess.Popen(
                # A group of its own, for a terminal sends its Ctrl-C to all of a group, and two are one too many.
                [sys.executable, "-P", "-m", __name__], stdin=subprocess.PIPE, stdout=out, stderr=err,
                start_new_session=True, env={**os.environ, **env, "PYTHONPATH": paths}) as process:
            assert process.stdin
            self.live.add(process)
            try:
                with suppress(BrokenPipeError):
                    process.stdin.write(json.dumps(order).encode() + b"\n")
                    process.stdin.flush()
                if self.stopping:  # since before it was among the living
                    process.terminate()
                while process.poll() is None:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(pause if look else None)
                    if look:
                        look()
            except KeyboardInterrupt:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(WAIT)
                raise
            finally:
                self.live.discard(process)
                with suppress(BrokenPipeError):
                    process.stdin.close()  # ends it where it still lives
            lines, warnings = ([line for line in (file.seek(0), file.read())[1].decode(errors="replace").splitlines()
                                if line.strip()] for file in (out, err))
        answer = {}
        with suppress(IndexError, ValueError):
            answer = json.loads(lines[-1])
        if not self.stopping:
            for line in warnings if answer else ():
                self._warn(line, order["job"]["name"])
        code = process.returncode
        how = (f"by {signal.Signals(-code).name}{', as where memory runs out' if code == -signal.SIGKILL else ''}"
               if code < 0 else f"with {warnings[-1]}" if warnings else f"with {code}")
        return answer if isinstance(answer, dict) else {}, how

    def _warn(self, line: str, name: str) -> None:
        if line not in self.known:
            self.known.add(line)
            self.said(f"{name}: {line}")


if __name__ == "__main__":
    main()
