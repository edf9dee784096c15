"""The settings of an experiment, besides those of the runs that it is made of."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from helios.errors import UserError, nearest
from helios.files import read_toml
from helios.model import GPTConfig
from helios.model.settings import ANY, COUNT, NATURAL, POSITIVE, Range, Settings, declared, one_of, setting
from helios.train.config import SECTIONS, Config, SearchConfig, resolve
from helios.train.evolve.stops import StopsConfig
from helios.train.morph import MODES
from helios.train.resume import settings_of
from helios.train.search.operators import values_in_effect

EXPERIMENTS = resources.files("helios.train.evolve") / "experiments"


def _as_in_a_search(key: str, **other: Any) -> Any:
    """Return the field of a search's setting, with another default where one is given."""
    field = SearchConfig.__dataclass_fields__[key]
    return dataclasses.field(default=other.get("default", field.default), metadata=field.metadata)


@dataclass(frozen=True)
class EvolveConfig(Settings):
    """How configs evolve; docs/evolve.md explains it."""

    budget: str = setting("tokens", one_of("tokens", "seconds"), "what every training may use as much of: tokens of "
                          "text, or seconds of training on one device", flag="budget")
    per_candidate: float = setting(1e6, POSITIVE, "the budget of a training, in tokens or seconds",
                                   flag="per-candidate")
    population_size: int = setting(8, Range("at least 2", lambda x: x >= 2), "candidates in a generation",
                                   flag="population")
    population_min: int | None = setting(None, Range("at least 2", lambda x: x >= 2), "fewest, to which a generation "
                                         "shrinks while nothing is gained; auto: as population_size")
    population_max: int | None = setting(None, Range("at least 2", lambda x: x >= 2), "most, to which a generation "
                                         "grows while something is gained; auto: as population_size")
    generations: int = setting(4, COUNT, "generations, the first one included; with --total at most",
                               flag="generations")
    total: float | None = setting(None, POSITIVE, "tokens or seconds that the whole experiment may use; auto: what the "
                                  "generations come to", flag="total")
    max_cost: float = setting(1e10, POSITIVE, "most tokens, or seconds, that an experiment may come to; one that may "
                              "need more is refused", flag="max-cost")
    replicates: int = setting(2, COUNT, "trainings of each candidate, with a seed each", flag="replicates")
    evaluations: int = setting(8, COUNT, "evaluations in a training, evenly spread")
    objectives: str = setting("val_loss", ANY, "what candidates are chosen by, names of measurements with commas "
                              "between; of several, none is worth more than another", flag="objectives")
    fitness: str | None = setting(None, ANY, "what they are chosen by instead: quality, efficiency or another of "
                                  "docs/search.md, or a formula of measurements, as "
                                  "'-val_loss+0.02*log(tokens_per_sec)'; more is better", flag="fitness")
    selection: str = setting("topk", one_of("topk", "tournament"), "who has children: the better half, or winners of "
                             "tournaments")
    tournament_size: int = _as_in_a_search("tournament_size")
    elitism: bool = _as_in_a_search("elitism")
    mutation_rate: float = _as_in_a_search("mutation_rate", default=0.8)
    crossover_rate: float = _as_in_a_search("crossover_rate")
    diversity_bonus: float = _as_in_a_search("diversity_bonus")
    diversity_decay: str = _as_in_a_search("diversity_decay")
    activation_pool: str = _as_in_a_search("activation_pool")
    activations: str = setting("formula", one_of("global", "per_block", "formula"), "how the gene activation varies: "
                               "others of activation_pool, in all blocks or in each, or those and mutated formulas")
    random_control: bool = setting(True, ANY, "train as many random candidates as evolved ones, to compare with")
    halving: float = setting(0.0, Range("from 0 to 0.5", lambda x: 0 <= x <= 0.5), "chance, at most, that the later "
                             "winner is among the candidates that are stopped before they have used their budget; 0: "
                             "none is", flag="halving")
    validation_replicates: int = setting(8, NATURAL, "fresh seeds on which the winner and the controls are trained "
                                         "again at the end; 0: no such trainings, and nothing is called better")
    validation_factor: float = setting(2.0, Range("at least 1", lambda x: x >= 1), "budget of those trainings, in "
                                       "budgets of a candidate")
    warm_start: str = setting("fresh", one_of("fresh", *MODES), "what children begin with in the search: new weights, "
                              "or the last ones of their parents, morphed as --morph does; what that cannot do begins "
                              "with new ones", flag="warm-start")

    def check(self) -> None:
        least, most = self.bounds
        if not least <= self.population_size <= most:
            raise UserError(f"population_size: given {self.population_size}, expected from population_min {least} to "
                            f"population_max {most}")

    @property
    def bounds(self) -> tuple[int, int]:
        """Return the fewest and the most candidates of a generation."""
        return self.population_min or self.population_size, self.population_max or self.population_size


@dataclass(frozen=True)
class Asked:
    """What an experiment was asked for: a run's settings, its own, which genes vary, by name, each with what narrows it
    (True: nothing does), the settings of runs that its first candidates have, and when a training ends early."""

    base: Config
    evolve: EvolveConfig
    genes: Mapping[str, Any]
    given: Sequence[Mapping[str, Any]] = ()
    stops: StopsConfig = field(default_factory=StopsConfig)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"base": self.base.to_dict(), "settings": self.evolve.to_dict(), "asked_genes": dict(self.genes),
                "given": [dict(values) for values in self.given], "stops": self.stops.to_dict()}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Asked:
        """Make it of plain values. Raises UserError for what is not among the settings."""
        return cls(resolve(base=found["base"]), EvolveConfig.from_dict(found["settings"]), found["asked_genes"],
                   found["given"], StopsConfig.from_dict(found["stops"]))


OWN: Mapping[str, type[Settings]] = {"evolve": EvolveConfig, "stops": StopsConfig}  # tables of an experiment alone


TABLES = (*SECTIONS, "activations", *OWN, "genes")


def experiments() -> list[str]:
    """Return the names of the experiments that come with Helios."""
    return sorted(file.name.removesuffix(".toml") for file in EXPERIMENTS.iterdir() if file.name.endswith(".toml"))


def asked(preset: str | None, name: str | None, file: str | Path | None, assignments: Iterable[str],
          flags: Mapping[str, Any], genes: str | None, seed_from: Sequence[Path] = ()) -> Asked:
    """Return what is asked for. Each source wins over those before it: the run's preset, the experiment `name`, a TOML
    file, whose tables [evolve], [stops] and [genes] are of the experiment, --set, flags. genes: their names with commas
    between, each with =LOW..HIGH or =A|B behind it where it is narrowed. seed_from: runs. Raises UserError."""
    sources: dict[str, dict[str, Any]] = {}
    if name is not None:
        if name not in experiments():
            raise UserError(f"unknown experiment {name!r}{nearest(name, experiments())}; there are "
                            f"{', '.join(experiments())}")
        sources[name] = tomllib.loads(EXPERIMENTS.joinpath(f"{name}.toml").read_text("utf-8"))
    if file is not None:
        sources[str(file)] = read_toml(file)
    names = {s.flag.replace("-", "_"): s.key for s in declared(EvolveConfig) if s.flag}
    tables, stops, narrowed, levels = dict[str, Any](), dict[str, Any](), dict[str, Any](), list[tuple[str, Any]]()
    for origin, found in sources.items():
        for key, value in found.items():
            if isinstance(value, Mapping) and key not in TABLES:
                raise UserError(f"{origin}: unknown table [{key}]{nearest(key, TABLES)}; there are "
                                f"{', '.join(f'[{name}]' for name in TABLES)}")
        evolve, more = (_table(found.pop(key, {}), key, origin) for key in OWN)
        narrowed = _table(found.pop("genes", narrowed), "genes", origin)
        levels.append((origin, {names.get(key.replace("-", "_"), key): value for key, value in evolve.items()}))
        stops, tables = stops | more, _merged(tables, found)
    own: dict[str, dict[str, Any]] = {name: {} for name in OWN}
    run: list[str] = []
    for text in assignments:
        key, equals, value = text.partition("=")
        key = names.get(key.strip().replace("-", "_"), key.strip())
        section = next((name for name, cls in OWN.items() if equals and key in {s.key for s in declared(cls)}), None)
        if section:
            own[section][key] = value.strip()
        else:
            run.append(text)
    mine = {key: value for key, value in flags.items() if key in EvolveConfig.__dataclass_fields__}
    levels += [("--set", own["evolve"]), ("flags", {key: value for key, value in mine.items() if value is not None})]
    base = resolve(preset, tables, run, {k: v for k, v in flags.items() if k not in mine}, origin=str(file or name))
    if base.train.morph != MODES[0]:
        raise UserError(f"morph {base.train.morph}: --warm-start says what children begin with, and how; give "
                        "that, and leave morph out")
    found_stops = StopsConfig.from_dict(stops | own["stops"])
    if found_stops.stop_loss is not None and not found_stops.stop_loss_after:
        raise UserError(f"stop_loss {found_stops.stop_loss:g} ends nothing while stop_loss_after is 0; give the number "
                        "of steps that may have such a loss as stop_loss_after, too")
    return Asked(base, EvolveConfig.from_dict(_levelled(levels)), narrowed if genes is None else terms(genes),
                 [_values(run) for run in seed_from], found_stops)


def _levelled(levels: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the settings of [evolve] that sources give, each winning over those before it, and objectives over their
    fitness. Raises UserError where one gives both."""
    found: dict[str, Any] = {}
    for origin, level in levels:
        if level.keys() >= {"fitness", "objectives"}:
            raise UserError(f"{origin}: fitness and objectives are both given, and candidates are chosen by one of "
                            "them; leave one out")
        if "objectives" in level:
            found.pop("fitness", None)
        found |= level
    return found


def _values(run: Path) -> dict[str, Any]:
    """Return the settings of a run that may vary, by key, and where it is as `run`."""
    found = settings_of(run)
    return {"run": str(run)} | values_in_effect(GPTConfig.from_dict(found["model"])) | found["train"] | found["monitor"]


def terms(text: str) -> dict[str, Any]:
    """Return the names of genes, each with what narrows it, as a text gives them. Raises UserError."""
    found: dict[str, Any] = {}
    for term in text.split(","):
        name, equals, narrow = (part.strip() for part in term.partition("="))
        if name and name in found:
            raise UserError(f"gene {name} is there twice; name each once")
        if equals and not narrow:
            raise UserError(f"gene {name}: nothing follows the =; give {name}=LOW..HIGH, {name}=A|B, or {name} alone")
        found[name] = narrow or True
    return found


def _table(value: Any, name: str, origin: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{origin}: [{name}] is a table")
    return dict(value)


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return two files' tables in one."""
    found = dict(one)
    for key, value in other.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = {**found[key], **value} if both else value
    return found
