"""The historic runs on the board."""

from __future__ import annotations

from pathlib import Path

from helios.train import history
from helios.train.board import historic, queries
from helios.train.board.store import Store

from .boards import board, event
from .test_store import put


def test_what_is_known_of_them_is_there(tmp_path: Path) -> None:
    for _ in range(2):  # a board that is started again has them once
        with board(tmp_path / "runs") as b:
            assert b.said.startswith("board of 0 runs")
            found = {entry["run_id"]: entry for entry in b.get("runs")["runs"]}
            for name in history.names():
                run = history.read(name)
                assert found[run.run_id] == run.entry() and found[run.run_id]["status"] == "historic"
                assert b.rows(run.run_id) == run.rows() and b.rows(run.run_id, "samples") == run.said()
                assert b.rows(run.run_id, "events") == run.events()
                assert b.rows(run.run_id, "candidates") == run.searched()
                assert b.get(f"runs/{run.run_id}")["overview"] == run.entry()
            assert len(found) == len(history.names())
            loss = b.get(f"runs/{history.read('4kwo').run_id}/series", keys="loss")["series"]["loss"]
            assert loss["first"][0] == 8.356 and loss["step"][-1] == 5539


def test_what_others_sent_under_their_names_goes(store: Store) -> None:
    run = history.read("4kwo")
    put(store, run.run_id, "events", 0, [event(-5, "alert"), event(-2**53, "alert")])
    store.write(historic.put)
    with store.reading() as db:
        found = queries.run(db, {}, run.run_id)
    assert found and found["overview"] == run.entry() and found["rows"]["events"] == len(run.events())
