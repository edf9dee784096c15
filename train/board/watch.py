from __future__ import annotations
import threading
from pathlib import Path
from helios.train.board import ingest
from helios.train.board.store import Store
from helios.train.records.layout import find_runs, read_config
from helios.train.records.overview import locked, updated
from helios.train.records.rows import lines

class Watcher:  # rough; the real one follows
    def __init__(self, runs: Path, store: Store) -> None:
        self.runs, self.store, self.ended = runs, store, threading.Event()
        self.thread = threading.Thread(target=self.loop)
    def start(self) -> None: self.thread.start()
    def stop(self) -> None:
        self.ended.set(); self.thread.join()
    def loop(self) -> None:
        while True:
            for path in find_runs(self.runs):
                try:
                    config = read_config(path); run_id = config["run_id"]; now = updated(path)
                    self.store.locks[run_id] = locked(path)
                    self.store.write(lambda db: ingest.about(db, run_id, config, None, [], now))
                    for kind in ("metrics", "events", "samples"):
                        rows = [(raw.decode().rstrip("\n"), row) for raw, row in lines(path / f"{kind}.jsonl")]
                        self.store.write(lambda db: ingest.put(db, run_id, kind, 0, rows, now))
                    rows = [(raw.decode().rstrip("\n"), row) for raw, row in lines(path / "search" / "candidates.jsonl")]
                    self.store.write(lambda db: ingest.put(db, run_id, "candidates", 0, rows, now))
                except Exception as e: print("warning:", e)
            if self.ended.wait(0.5): return
