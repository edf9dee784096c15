"""The page of all settings: docs/settings.md, which `helios-info --settings` prints."""

from __future__ import annotations

from helios.model.genes import Gene
from helios.model.settings import Setting, declared, spelt
from helios.train.config import SECTIONS
from helios.train.evolve.config import OWN
from helios.train.markdown import section, table

HEAD = """# Settings

Every setting of a run. Each can stand in a TOML file (in the table that heads its section, or as a bare key), in
`--set KEY=VALUE`, and in its flag where it has one. Flags win over `--set`, `--set` over `--config`, and that over
`--preset`. A default of auto follows from other settings, and – means that the setting is not given. A table
`[activations]` in a TOML file gives formulas names, as `quick = "x*sigmoid(1.702*x)"`, for whatever takes an
activation. The last column says what helios-evolve may make of a setting, unless it is told otherwise:
[evolve.md](evolve.md#genes). This page is what `helios-info --settings` prints."""
ABOUT = {
    "model": "What a GPT is made of.", "data": "The texts that a run reads.",
    "train": "How a run trains, and what it writes on the way.",
    "search": "What is searched for, and the search for an activation before the training; see [search.md](search.md).",
    "monitor": "What is watched in a run, and what may change its training; see [search.md](search.md#monitors).",
    "challenge": "Challengers of a run's model while it trains; see [challenge.md](challenge.md).",
    "evolve": "How an experiment evolves configs; these are no settings of a run. See [evolve.md](evolve.md).",
    "stops": "When a training of an experiment ends before its last step; these are no settings of a run either."}


def markdown() -> str:
    """Return the page, one table a section."""
    lines = [HEAD]
    for name, cls in {**SECTIONS, **OWN}.items():
        lines += section(f"[{name}]", ABOUT[name])
        genes = ("gene",) if any(s.gene for s in declared(cls)) else ()
        rows = ((f"`{s.key}`", f"`--{s.flag}`" if s.flag else "", s.default_text or "–", _values(s), s.help,
                 *(_gene(s.gene) for _ in genes)) for s in declared(cls))
        lines += table(("setting", "flag", "default", "values", "meaning", *genes), rows, left=6)
    return "\n".join(lines) + "\n"


def _gene(gene: Gene | None) -> str:
    if gene is None:
        return ""
    if not gene.numeric:
        return ", ".join(spelt(value) for (value,) in gene.values)
    return f"{gene.low:g} to {gene.high:g}" + {"linear": "", "log": ", by ratios",
                                               "of_rest": ", by ratios of what is left to 1"}[gene.kind]


def _values(s: Setting) -> str:
    return s.range.words if s.range.names else ", ".join(filter(None, (s.kind.words, s.range.words)))
