"""The pages as a user gets them: plots, HTML, several runs, errors; and texts of others, which are no markup."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imread

from helios.cli.report import main
from helios.train.markdown import escaped
from helios.train.report import html, page, reading

from ..commands import invoke, refused
from .runs import Runs, cells, change, edit, edit_config, rows, table

# -- texts that others wrote -------------------------------------------------------------------------------------------

EVIL = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a|b|c\\|d\\", "```\n# Title\n```", "~~~~ ````",
        "[x](javascript:alert(1)) ![y](http://z)", "**bold** _i_ `c` &lt;b&gt;", "\n\n## Section\n\n| a |\n|---|",
        "\u202eesrever \x1b[31m \x00", "1. one\n2. two", "---", "\ud800", "$x^2$ </pre></table>"]


VOID = {"meta", "img", "br", "hr", "link", "input"}  # elements without an end


class Page(HTMLParser):
    """Checks that elements are nested rightly; collects their names, their attributes and the text in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: dict[str, int] = {}
        self.attributes: list[tuple[str, str | None]] = []
        self.data = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.data += data


def as_html(path: Path) -> tuple[str, str]:
    text = "\n".join(["# Run", *page.of_one(reading.read(path), {})]) + "\n"
    return text, html.page(text, {}, "Run")


def test_others_texts_are_no_markup(copy: Path) -> None:
    edit(copy, change(cusum_alert_reason=lambda s, row: "calm" if s == 60 else None))  # so that there is a finding
    calm, before = as_html(copy)
    tags, evil = Page(before).tags, " ".join(EVIL)
    edit(copy, lambda kept: [row | {"text": f"{evil} {i}", "prompt": EVIL[i % len(EVIL)]}
                             for i, row in enumerate(kept)], "samples.jsonl")
    edit(copy, lambda kept: [row | {"message": evil, "kind": evil if row["kind"] == "run_start" else row["kind"]}
                             for row in kept], "events.jsonl")
    edit(copy, change(cusum_alert_reason=lambda s, row: evil if s == 60 else None))

    def spoil(about: dict[str, Any]) -> None:
        about["run_id"] = about["device"]["name"] = about["device"]["driver"] = about["host"]["name"] = evil
        about["data"]["data"], about["train"]["new" + evil], about["model"]["activation"] = [evil], evil, evil
        about["versions"] |= {evil: evil}
    edit_config(copy, spoil)
    text, after = as_html(copy)
    found = Page(after)
    assert {*found.tags} == {*tags}, {*found.tags} ^ {*tags}  # no kind of element that was not there
    assert {tag: found.tags[tag] for tag in ("h1", "h2", "h3", "pre", "meta", "style", "a", "nav")} == {
        tag: tags[tag] for tag in ("h1", "h2", "h3", "pre", "meta", "style", "a", "nav")}
    assert not {"script", "img", "iframe", "b", "strong", "em"} & {*found.tags}
    assert not [name for name, _ in found.attributes if name.startswith("on") or name == "src"]
    assert {value[0] for name, value in found.attributes if name == "href" and value} == {"#"}
    assert "<script>alert(1)</script>" in found.data and "[x](javascript:alert(1))" in found.data
    assert "\u202e" not in after and "\x1b" not in after and "\x00" not in after
    # In the Markdown, too, sections and the columns of each table are what they were.
    calm, text = (re.sub(r"^(`{3,})$.*?^\1$", "", told, flags=re.M | re.S) for told in (calm, text))  # no code
    titles, before_titles = (re.findall(r"^#+ .*$", told, re.M)[1:] for told in (text, calm))
    assert titles == before_titles
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.M):
        assert len({len(cells(line)) for line in block.splitlines()}) == 1, block


def test_candidates_names_are_no_markup(runs: Runs, tmp_path: Path) -> None:
    path = shutil.copytree(runs["search"], tmp_path / "search")
    before = Page(as_html(path)[1]).tags
    edit(path, lambda kept: [row | {"name": EVIL[i] + EVIL[i + 1], "mutation": EVIL[2]} for i, row in enumerate(kept)],
         "search/candidates.jsonl")
    after = Page(as_html(path)[1])
    assert after.tags == before and "<script>alert(1)</script>" in after.data
    written = page.write([reading.read(path)], tmp_path / "out")  # plots with any name, too
    assert (written.parent / "search-lineage.png").exists()


# -- the command -------------------------------------------------------------------------------------------------------

def test_markdown_and_plots(runs: Runs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = invoke(main, runs["plain"], "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out / 'report.md'}\n"
    text = (out / "report.md").read_text()
    assert text.startswith(f"# Run {json.loads((runs['plain'] / 'config.json').read_text())['run_id']}\n")
    named = set(re.findall(r"!\[.*?\]\((.*?)\)", text))
    assert named == {p.name for p in out.glob("*.png")} == {
        "loss.png", "lr.png", "gradients.png", "throughput.png", "steps.png", "weights.png", "layers.png"}
    for name in named:
        assert 0.02 < np.mean(imread(out / name)[..., :3] < 0.99) < 0.9  # neither blank nor black


def test_one_html_file_with_all_in_it(runs: Runs) -> None:
    path = runs["search"]
    result = invoke(main, "--html", path)
    assert result.exit_code == 0 and result.stdout == f"{path / 'report' / 'report.html'}\n"
    assert [p.name for p in (path / "report").iterdir()] == ["report.html"]
    text = (path / "report" / "report.html").read_text()
    found = Page(text)
    assert found.tags["img"] >= 10 and "script" not in found.tags and "prefers-color-scheme: dark" in text
    sources = [value or "" for name, value in found.attributes if name in ("src", "href")]
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in sources)
    assert len({value for name, value in found.attributes if name == "id"}) == found.tags["h2"] == sum(
        value.startswith("#") for value in sources)


def test_runs_side_by_side(runs: Runs, tmp_path: Path) -> None:
    paths = [runs[name] for name in ("plain", "other", "search", "empty", "diverged")]
    result = invoke(main, *paths, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "report.md").read_text()
    ids = [json.loads((path / "config.json").read_text())["run_id"] for path in paths]
    assert text.startswith("# 5 runs side by side\n") and re.findall(r"!\[.*?\]\((.*?)\)", text) == ["losses.png"]
    names = [f"{name} ({path})" if ids.count(name) > 1 else name for name, path in zip(ids, paths, strict=True)]
    differs = {row.pop(""): row for row in table(text, "What differs")}
    assert [differs["train.lr"][name] for name in names[:2]] == ["0.003", "0.001"]
    assert [differs["model.activation"][name] for name in names[:2]] == ["gelu", "relu"]
    assert "model.n_embd" not in differs and "run_id" not in differs
    for row in table(text, "Loss"):
        step = int(row["step of the training"])
        for name, path in list(zip(names, paths, strict=True))[:2]:
            x = [r["loss"] for r in rows(path) if r["step"] == step]
            assert row[name] == (f"{x[0]:.4f}" if x else "–")
    assert next(row for row in table(text, "Loss") if row["step of the training"] == "10")[names[-1]] == "not finite"
    figures = {row.pop(""): row for row in table(text, "Figures")}
    overview = {row.pop(""): tuple(row.values()) for row in table(text, "Overview")}
    assert not {*overview.values()} & {tuple(row.values()) for row in figures.values()}  # nothing is told twice
    norms = [row["grad_norm"] for row in rows(paths[1])]
    assert figures["gradient norm: median / 99 % / highest"][names[1]] == " / ".join(
        f"{x:.2f}" for x in (np.median(norms), np.percentile(norms, 99), max(norms)))
    assert set(re.findall(r"^### (.*)$", text, re.M)) == set(map(escaped, names))
    assert imread(tmp_path / "losses.png").shape[1] > 1000


def test_two_equal_runs(runs: Runs, tmp_path: Path) -> None:
    assert invoke(main, runs["plain"], runs["plain"], "--html", "--out", tmp_path).exit_code == 0
    assert "No setting, device or version differs." in (tmp_path / "report.html").read_text()
    assert invoke(main, runs["empty"], runs["one"], "--out", tmp_path).exit_code == 0


def test_user_errors_are_one_line(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(invoke(main, tmp_path / "nowhere"), "is no run directory")
    refused(invoke(main, runs["plain"] / "checkpoints"), "is no run directory")
    refused(invoke(main, runs["empty"], "--out", tmp_path / "file"), "cannot write to")
    refused(invoke(main), "RUN")
    refused(invoke(main, runs["plain"], "--nonsense"), "--nonsense")


def test_a_terminal_is_told_what_to_look_at(runs: Runs, tmp_path: Path) -> None:

    parent, child = pty.openpty()
    command = [sys.executable, "-m", "helios.cli.report", str(runs["interrupted"]), "--out", str(tmp_path)]
    assert subprocess.run(command, stdout=child).returncode == 0
    os.close(child)
    told = b""
    while True:
        try:
            part = os.read(parent, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        told += part
    os.close(parent)
    assert b"* The run is not finished: interrupted (SIGINT at step" in told and b"report.md" in told
    assert b"\\" not in told
