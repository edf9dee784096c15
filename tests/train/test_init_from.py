"""Runs that begin with the weights of another."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helios.backends.backend import Backend
from helios.errors import UserError
from helios.train import checkpoint, texts
from helios.train.config import resolve
from helios.train.progress import Display
from helios.train.records.layout import EVENTS, METRICS, read_config
from helios.train.records.rows import rows
from helios.train.run import Run

QUIET = Display(quiet=True)


def run(path: Path, backend: Backend, **given: Any) -> Run:
    flags = {"backend": backend.name, "checkpoint_interval": 2, "keep": 0, "eval_interval": 3} | given
    texts = {key: str(value) if isinstance(value, Path) else value for key, value in flags.items()}
    return Run.create(resolve(None if "init_from" in given else "tiny", flags=texts), path)


def final(path: Path) -> bytes:
    last = checkpoint.directories(path)[-1]
    return (last / checkpoint.MODEL).read_bytes() + (last / checkpoint.OPTIMIZER).read_bytes()


@pytest.mark.parametrize("how, more", [("exact", {}), ("prefix", {"n_layer": 3, "block_size": 20}),
                                       ("project", {"n_embd": 48, "activation": "swiglu"})])
def test_a_run_begins_with_weights_and_is_resumed(how: str, more: dict[str, Any], tmp_path: Path, each_backend: Backend
                                                  ) -> None:
    run(tmp_path / "old", each_backend, steps=5).train(QUIET)
    given = {"init_from": tmp_path / "old", "morph": how, "data": "synth:48KB", "steps": 6, "batch_size": 2, **more}
    first = run(tmp_path / "whole", each_backend, **given)
    assert first.train(QUIET).step == 6
    about = read_config(tmp_path / "whole")
    init, source = about["init"], tmp_path / "old" / "checkpoints" / "step-000005"
    assert init["path"] == str(source) and init["step"] == 5 and init["tokens"] == 5 * 4 * 16 and init["how"] == how
    assert init["run_id"] == read_config(tmp_path / "old")["run_id"]
    assert init["sha256"] == checkpoint.load(source).state["files"][checkpoint.MODEL]["sha256"]
    events = [(e["kind"], e["step"]) for e in rows(tmp_path / "whole" / EVENTS)]
    assert events[:2] == [("run_start", 0), ("initialised", 0)]
    assert (tmp_path / "whole" / "tokenizer.json").read_bytes() == (tmp_path / "old" / "tokenizer.json").read_bytes()
    old, new = (rows(tmp_path / name / METRICS) for name in ("old", "whole"))
    if how != "project":  # whose other activation is another function
        assert abs(new[0]["loss"] - old[-1]["loss"]) < abs(new[0]["loss"] - old[0]["loss"])
    # As if it had been killed after step 4, when what it began with was gone.
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-000006")
    shutil.move(tmp_path / "old", tmp_path / "gone")
    Run.resume(tmp_path / "parts").train(QUIET)
    Run.resume(tmp_path / "parts" / "checkpoints" / "step-000002", path=tmp_path / "own").train(QUIET)
    for name in ("parts", "own"):
        assert final(tmp_path / name) == final(tmp_path / "whole") and read_config(tmp_path / name)["init"] == init
        assert not [e for e in rows(tmp_path / name / EVENTS) if e["kind"] == "settings_changed"]


def test_the_fingerprint_tells_what_a_run_began_with(tmp_path: Path, cpu_ref: Backend) -> None:
    run(tmp_path / "old", cpu_ref, steps=4).train(QUIET)
    shutil.copytree(tmp_path / "old", tmp_path / "copy")
    hashes = []
    for name, source in (("a", "old"), ("b", "copy"), ("c", "old/checkpoints/step-000002")):
        run(tmp_path / name, cpu_ref, init_from=tmp_path / source, steps=1).train(QUIET)
        hashes.append(read_config(tmp_path / name)["config_hash"])
        assert checkpoint.states(tmp_path / name)[0]["config_hash"] == hashes[-1]
    assert hashes[0] == hashes[1] != hashes[2]
    # What a lineage has read.
    run(tmp_path / "d", cpu_ref, init_from=tmp_path / "a", steps=1).train(QUIET)
    assert read_config(tmp_path / "d")["init"]["tokens"] == 4 * 4 * 16 + 8 * 16


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, cpu_ref: Backend) -> None:
    run(tmp_path / "old", cpu_ref, steps=4).train(QUIET)
    (tmp_path / "old" / "checkpoints" / "step-000004" / checkpoint.MODEL).write_bytes(b"")
    run(tmp_path / "new", cpu_ref, init_from=tmp_path / "old", steps=1).train(QUIET)
    assert read_config(tmp_path / "new")["init"]["step"] == 2
    kinds = [e["kind"] for e in rows(tmp_path / "new" / EVENTS)]
    assert kinds[:3] == ["run_start", "initialised", "damaged_checkpoint"]


def test_a_dry_run_has_the_whole_table(tmp_path: Path, cpu_ref: Backend) -> None:
    run(tmp_path / "old", cpu_ref, steps=1).train(QUIET)
    new = run(tmp_path / "new", cpu_ref, init_from=tmp_path / "old", morph="prefix", n_layer=3, vocab_size=310)
    said = new.preview()
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert {"blocks.0-1.ln1.weight copied 32", "blocks.2.attn.out.weight cloned 32×32 zero",
            "wte.weight projected 300×32 → 310×32 tokens 300 → 310",
            "not checked: which tokens of the new vocabulary the old one has"} <= set(lines)
    assert "tensors: 19 copied, 2 projected, 8 cloned; the same function of " in said
    assert "not checked: whether the text supports a vocabulary of 310 and is long enough" in lines
    assert "not checked: whether the text is long enough" in run(tmp_path / "new", cpu_ref, init_from=tmp_path / "old"
                                                                 ).preview().splitlines()
    assert not (tmp_path / "new").exists()


def test_the_parents_text_is_not_taken_in_silence(tmp_path: Path, cpu_ref: Backend, capsys: pytest.CaptureFixture[str]
                                                  ) -> None:
    (tmp_path / "a.txt").write_text(texts.read("synth:64KB"))
    run(tmp_path / "old", cpu_ref, steps=1, data=tmp_path / "a.txt").train(QUIET)
    warning = f"warning: the text is synth:2MB, and the parent's was {tmp_path / 'a.txt'}: give --data to say which"
    for text, said in (({}, [warning]), ({"data": "synth:64KB"}, []), ({"data": tmp_path / "a.txt"}, [])):
        new = run(tmp_path / f"new{len(text)}", cpu_ref, steps=1, init_from=tmp_path / "old", **text)
        assert [line for line in new.preview().splitlines() if line.startswith("warning")] == said
    run(tmp_path / "new", cpu_ref, steps=1, init_from=tmp_path / "old").train(QUIET)
    assert capsys.readouterr().err.splitlines() == [warning]


def test_another_vocabulary(tmp_path: Path, cpu_ref: Backend) -> None:
    run(tmp_path / "old", cpu_ref, steps=2).train(QUIET)
    given = {"init_from": tmp_path / "old", "steps": 1, "morph": "project"}
    run(tmp_path / "larger", cpu_ref, vocab_size=320, **given).train(QUIET)
    lines = {line[0]: line for line in read_config(tmp_path / "larger")["init"]["table"]}
    assert lines["wte.weight"][1] == "projected" and lines["wte.weight"][4] == "300 of 320 tokens known"
    run(tmp_path / "named", cpu_ref, tokenizer=tmp_path / "larger", **given).train(QUIET)
    assert checkpoint.load(tmp_path / "named" / "checkpoints" / "step-000001").model["wte.weight"].shape == (320, 32)
    del given["morph"]
    for size in (300, 310):
        with pytest.raises(UserError, match=rf"^--vocab-size {size}: .* has 320 tokens; leave --vocab-size out"):
            run(tmp_path / "c", cpu_ref, tokenizer=tmp_path / "larger", vocab_size=size, **given).preview()
    with pytest.raises(UserError, match=r"\[300, 32\] there and \[320, 32\] here, for a vocabulary of other tokens; "
                                        "--morph project"):
        run(tmp_path / "c", cpu_ref, tokenizer=tmp_path / "larger", **given).preview()


def test_settings_begin_with_the_parents(tmp_path: Path, cpu_ref: Backend) -> None:
    run(tmp_path / "old", cpu_ref, steps=1, n_layer=1, softcap=7).train(QUIET)
    (tmp_path / "a.toml").write_text(f'init_from = "{tmp_path}/old"\nlogit_softcap = 9\n')
    found = resolve(file=tmp_path / "a.toml", assignments=["n_head=8"], flags={"n_embd": 64}).model
    assert (found.softcap, found.logit_softcap, found.n_layer, found.n_head, found.n_embd, found.vocab_size) == (
        7, 9, 1, 8, 64, 300)
    assert resolve("quickstart", flags={"init_from": str(tmp_path / "old")}).model == replace(
        resolve("quickstart").model, vocab_size=300)
