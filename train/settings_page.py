"""The page of all settings: docs/settings.md, which `helios-info --settings` prints."""

from __future__ import annotations

from helios.model.settings import Setting, declared
from helios.train.config import SECTIONS
from helios.train.markdown import section, table

HEAD = """# Settings

Every setting of a run. Each can stand in a TOML file (in the table that heads its section, or as a bare key), in
`--set KEY=VALUE`, and in its flag where it has one. Flags win over `--set`, `--set` over `--config`, and that over
`--preset`. A default of auto follows from other settings, and – means that the setting is not given. A table
`[activations]` in a TOML file gives formulas names, as `quick = "x*sigmoid(1.702*x)"`, for whatever takes an
activation. This page is what `helios-info --settings` prints."""
ABOUT = {
    "model": "What a GPT is made of.", "data": "The texts that a run reads.",
    "train": "How a run trains, and what it writes on the way.",
    "search": "The search for an activation before the training; see [search.md](search.md).",
    "monitor": "What is watched in a run, and what may change its training; see [search.md](search.md#monitors)."}


def markdown() -> str:
    """Return the page, one table a section."""
    lines = [HEAD]
    for name, cls in SECTIONS.items():
        lines += section(f"[{name}]", ABOUT[name])
        rows = ((f"`{s.key}`", f"`--{s.flag}`" if s.flag else "", s.default_text or "–", _values(s), s.help)
                for s in declared(cls))
        lines += table(("setting", "flag", "default", "values", "meaning"), rows, left=5)
    return "\n".join(lines) + "\n"


def _values(s: Setting) -> str:
    return s.range.words if s.range.names else ", ".join(filter(None, (s.kind.words, s.range.words)))
