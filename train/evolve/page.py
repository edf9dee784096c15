"""The page of an experiment's report, for a reader who was not there."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from helios.model.activations import short_name
from helios.train.evolve import terms, winner
from helios.train.evolve.experiment import Experiment
from helios.train.evolve.state import State
from helios.train.evolve.summary import ARMS, Entry, Summary, Warm, measured, sign
from helios.train.evolve.terms import bullets, spelt
from helios.train.markdown import YES_NO, duration, escaped, listed, number, share_of, with_error
from helios.train.markdown import block as code
from helios.train.markdown import table as markdown_table
from helios.train.records.journal import RUNS
from helios.train.search import statistics
from helios.train.search.ranking import labels

AMOUNT = re.compile(r"(?:([-+.\de]+) (?=worse than ))?(.*)", re.DOTALL)  # how much worse, and what else a reason says
SHOWN = 20  # most candidates in the table of the best
FORMS = {**dict.fromkeys(("tokens_per_sec", "parameters", "tokens", "memory_mb"), ",.0f"),
         **dict.fromkeys(("val_loss", "best_val_loss", "train_loss"), ".4f")}  # of measurements; else #.4g
WORDS = {"role", "candidate", "name", "id", "arm", "differs from the preset by", "status", "separated", "gene",
         "preset", "winner", "leader", "operator", "why", "why this size", "reason", "phase"}
ROLES = {"evolved": "the best evolved", "random": "the best of random search", "preset": "the untouched preset"}
OPTIMISTIC = ("These figures are of the search, which chose by them: the best of many is partly the luckiest, so they "
              "are optimistic. Only the trainings on fresh seeds, above, say what is better.")

_table = partial(markdown_table, left=0, words=WORDS)


def page(experiment: Experiment, state: State, found: Summary, pictures: Collection[str], folder: Path) -> str:
    """Return the page. pictures: the names of those that there are. folder: of the experiment."""
    content: tuple[tuple[str, str, Iterable[str]], ...] = (  # title, picture, lines above the picture
        ("The verdict", "validation.png", _verdict(experiment, state, found)),
        ("What was asked", "", terms.asked(experiment)),
        ("What it cost", "", _cost(found)),
        ("What children began with", "", _warm(found)),
        ("Best candidates", "progress.png", _best(experiment, state, found)),
        ("Pareto front", "front.png", _front(state, found)),
        ("Generations", "generations.png", _generations(found)),
        ("Hypervolume", "hypervolume.png", []),
        ("Operators", "", _operators(found)),
        ("Genes", "genes.png", _genes(experiment, found)),
        (f"The line of the {_first(found)}", "lineage.png", _line(state, found)),
        ("Dropped, stopped, diverged, failed", "", _lost(state, found)),
        ("What is not fair, or may differ", "", bullets(terms.unfair(experiment, state, found))),
        ("How to go on", "", _onward(experiment, found, folder)),
        ("How to read this", "", bullets(HOW_TO_READ)),
    )
    parts = [f"# {escaped(headline(state, found))}"]
    for title, picture, above in content:
        lines = list(above)
        if lines or picture in pictures:
            parts += [f"## {title}", "\n".join(lines)]
            parts += [CAPTIONS[picture], f"![{title}]({picture})"] if picture in pictures else []
    return "\n\n".join(filter(None, parts)) + "\n"


CAPTIONS = {
    "validation.png": "Each line is a fresh seed, the same for all; bars are means.",
    "progress.png": "The best so far against what its arm had used up to then; dots are candidates, in order of birth.",
    "front.png": "Ringed candidates are the front.",
    "generations.png": "Dots are candidates, bars their medians; the line is the preset.",
    "hypervolume.png": "How much of the space of objectives the evolved dominate, as a share of the box that the first "
                       "generation's values span: more where they have got better than its best in all. Below, the "
                       "sizes of the generations.",
    "genes.png": "Each candidate that was measured, on the gene's own scale; the dashed line is the preset's value.",
    "lineage.png": "By generation. Solid lines lead from the first parent, dashed ones from the second.",
}
HOW_TO_READ = (
    "A candidate is trained once for each seed, and replicate r of all of them has the same seed. ± is the standard "
    "error of the mean over these trainings: how far other seeds would move it.",
    "Separated means: further apart than chance explains, at an error rate of 5 % for all comparisons at the end "
    "together, by a test that pairs the seeds. What is not separated is neither better nor worse, as far as is known.",
    "The trainings at the end have seeds that chose nothing, so that the best of many has no advantage by luck there.",
)


def headline(state: State, found: Summary) -> str:
    """Return in one sentence what came out."""
    if found["verdict"]:
        return sentences(found)[0]
    n, leader = len(found["ranking"]), found["leader"]
    leads = f"; {state.born[leader].name} ({leader}) leads in the search" if leader else ""
    return (f"The experiment is not finished: {terms.count(n, 'candidate')} of "
            f"{terms.count(len(found['generations']), 'generation')} measured{leads}")


def sentences(found: Summary) -> list[str]:
    """Return what the verdict says; nothing where there is none yet."""
    verdict = found["verdict"] or {}
    return verdict.get("sentences") or ["nothing was compared"] * bool(verdict)


def _verdict(experiment: Experiment, state: State, found: Summary) -> Iterator[str]:
    leader, verdict = found["leader"], found["verdict"]
    if verdict is None:
        yield "Nothing may be called better yet: that is for the trainings on fresh seeds at the end to say."
    else:
        yield from bullets(sentences(found))
        yield ""
        yield ("The winner is better than the preset." if verdict["better"] else
               "Nothing was shown to be better than the preset.") + f" {winner.fresh(experiment)}" * bool(leader)
    if leader:
        c = state.born[leader]
        yield ""
        yield (f"The {_first(found)}, the best evolved by {found['objectives'][0]} in the search, is {escaped(c.name)} "
               f"(`{leader}`). It differs from the preset by: "
               f"{escaped(winner.differs(experiment, state, leader))}.")
    if verdict and (roles := verdict.get("roles")):
        name, side = found["objectives"][0], sign(found["objectives"][0])
        rows, against = list[list[str]](), {c["control"]: c for c in verdict["comparisons"]}
        for role, id in roles.items():
            one = against.get(role, {"difference": None, "error": None, "p": None, "same": True})
            apart = one["difference"] and side * one["difference"]
            rows.append([ROLES[role], f"{escaped(state.born[id].name)} (`{id}`)",
                         _said(name, measured(experiment, state, id, name, "validation")),
                         str(len(state.trained(id, "validation"))), with_error(apart, one["error"], "+.4g"),
                         "–" if one["p"] is None else statistics.spelt(one["p"]),
                         YES_NO[None if one["same"] else one["separated"]]])
        yield from ("", *_table(("role", "candidate", f"{name} on fresh seeds", "seeds", "evolved − this", "p",
                                 "separated"), rows))
        yield from ("", f"“Evolved − this” {'below' if side > 0 else 'above'} 0: the evolved is better. p is corrected "
                    "for the number of comparisons.")
        yield from ("", *_absent(state, roles)) if roles.keys() < set(ARMS) else ()


def _absent(state: State, roles: Collection[str]) -> Iterator[str]:
    for arm in ARMS:
        if arm not in roles and (ids := [id for id, c in state.born.items() if c.arm == arm]):
            why = listed(sorted({str(state.candidate(id).status) for id in ids}))
            yield f"Not compared with {ROLES[arm]}: of its {len(ids)}, none came to a result to be chosen by ({why})."


def _cost(found: Summary) -> Iterator[str]:
    yield (f"{found['spent']:,.10g} {found['unit']} so far, of at most {found['most']:,.10g}."
           if found["verdict"] is None else
           f"{found['spent']:,.10g} {found['unit']}, of at most {found['most']:,.10g}.")
    total = {"trainings": 0, "tokens": 0, "seconds": 0.0}
    rows = []
    for arm, spent in found["cost"].items():
        rows.append([arm, f"{spent['trainings']:,}", f"{spent['tokens']:,}", duration(spent["seconds"])])
        for key, value in spent.items():
            total[key] += value  # type: ignore[operator]
    rows += [["all", f"{total['trainings']:,}", f"{total['tokens']:,}", duration(total["seconds"])]] if rows else []
    yield from ("", *markdown_table(("arm", "trainings", "tokens", "seconds of training"), rows))


def _warm(found: Summary) -> Iterator[str]:
    if (warm := found["warm"]) is None:
        return
    name, best, weights = found["objectives"][0], warm["best"], warm["weights"]
    left = sum(map(len, warm["fresh"].values()))
    yield (f"Of {warm['begun'] + left} children, {warm['begun']} began with the last weights of their parents "
           f"(`{warm['mode']}`), replicate by replicate, and {left} with new ones, as all other candidates did.")
    yield ""
    yield from bullets(f"{why}: {', '.join(ids)}" for why, ids in warm["fresh"].items())
    if any(x is not None for x in best.values()):
        told = [f"{number(best[arm], FORMS.get(name, '#.4g'))} for the best {arm}" for arm in best]
        yield from bullets([f"After {warm['tokens']:,} tokens of each arm in the search, all its trainings together, "
                            f"{name} was {listed(told)}."])
    if weights:
        yield from bullets([f"The best trained weights are those of runs/{weights['run']}, with a validation loss of "
                            f"{weights['val_loss']:.4f} at its end, after {weights['tokens']:,} tokens, inherited ones "
                            "included. Whether they were worth it, a single training of as many tokens would tell."])


def _best(experiment: Experiment, state: State, found: Summary) -> Iterator[str]:
    entries = [e for e in found["ranking"] if e["rank"]]
    if not entries:
        return
    names = labels(state.born.values())
    shown = [e for at, e in enumerate(entries) if at < SHOWN or e["id"] == found["leader"] or e["arm"] == "preset"]
    columns = list(dict.fromkeys((*found["objectives"], "val_loss")))
    yield OPTIMISTIC
    if len(found["objectives"]) > 1:
        yield ("They are in order of Pareto rank, and within one those first that stand most alone: who is first here "
               "need not be the winner, who is chosen by the first objective.")
    yield ""
    yield from _table(("rank", "name", "id", "arm", "gen.", "differs from the preset by", *columns,
                       *["inherited tokens"] * bool(found["warm"]), "trainings", "status"),
                      (_cells(experiment, state, e, columns, names[e["id"]], found["warm"]) for e in shown))
    rest = len(entries) - len(shown)
    yield from ("", f"{rest} more are in summary.json.") if rest else ()


def _cells(experiment: Experiment, state: State, e: Entry, columns: Sequence[str], name: str, warm: Warm | None
           ) -> list[str]:
    return [number(e["rank"], "d"), escaped(name), f"`{e['id']}`", e["arm"], str(e["generation"]),
            escaped(winner.differs(experiment, state, e["id"])),
            *(_said(column, e["measured"][column]) for column in columns),
            *[f"{e['inherited']:,}"] * bool(warm), str(e["trainings"]), e["status"]]


def _said(name: str, m: Any) -> str:
    return with_error(m["mean"], m["error"], FORMS.get(name, "#.4g"))


def _front(state: State, found: Summary) -> Iterator[str]:
    if not found["front"]:
        return
    names, entries = labels(state.born.values()), {e["id"]: e for e in found["ranking"]}
    yield ("Of these none is better than another in all objectives; all others that were measured are no better "
           "than one of them in any. They are the search's figures, and so optimistic.")
    yield ""
    yield from _table(("name", "id", "arm", *(f"{n} ({found['better'][n]} is better)" for n in found["objectives"])), (
        [escaped(names[id]), f"`{id}`", entries[id]["arm"],
         *(_said(n, entries[id]["measured"][n]) for n in found["objectives"])] for id in found["front"]))


def _generations(found: Summary) -> Iterator[str]:
    name = found["objectives"][0]
    if not any(x is not None for g in found["generations"] for x in g["best"].values()):
        return
    form = FORMS.get(name, "#.4g")
    yield f"By {name} in the search; {found['better'][name]} is better."
    yield ""
    yield from _table(("gen.", "size", "best evolved", "median evolved", "best random", "median random", "hypervolume",
                       "why this size"), (
        [str(g["generation"]), str(g["size"]), *(number(g[of][arm], form) for arm in ("evolved", "random")
                                                 for of in ("best", "median")),
         number(g["hypervolume"], ".3f"), escaped(g["why"])] for g in found["generations"]))


def _operators(found: Summary) -> Iterator[str]:
    if not found["operators"]:
        return
    yield ("How candidates of the evolved arm were born, and how many were better than all their parents in the "
           "search. Parents were chosen for being good, partly by luck, so that even children that are as good mostly "
           "look worse." + " But here children had read more than their parents, so that most look better."
           * bool(found["warm"]))
    yield ""
    yield from markdown_table(("operator", "born", "of a known genome", "better than their parents"), (
        [escaped(name), str(o["born"]), str(o["reused"]),
         share_of(o["better"], o["compared"]) if o["compared"] else "–"]
        for name, o in found["operators"].items()))


def _genes(experiment: Experiment, found: Summary) -> Iterator[str]:
    if not any(g["n"] for g in found["genes"].values()):
        return
    name = found["objectives"][0]
    yield (f"Rank correlation (Spearman's ρ) of each gene with {name}: above 0, the higher the gene, the higher the "
           f"{name}, of which {found['better'][name]} is better. This is an observation, not a cause: evolved "
           f"candidates are kin of those that were chosen, and genes travel together. So p over all, corrected for the "
           f"number of genes, is too small; random candidates are independent."
           + " Evolved ones also had read the more, the later they were born." * bool(found["warm"]))
    yield ""
    yield from _table(("gene", "preset", _first(found), "ρ, evolved and random", "n", "p", "ρ, random alone", "n",
                       "p"), (
        [escaped(gene), escaped(spelt(g["preset"])), "–" if g["leader"] is None else escaped(spelt(g["leader"])),
         number(g["correlation"], "+.2f"), str(g["n"]), number(g["p"], ".2g"),
         number(g["random_correlation"], "+.2f"), str(g["random_n"]), number(g["random_p"], ".2g")]
        for gene, g in found["genes"].items()))


def _line(state: State, found: Summary) -> Iterator[str]:
    if found["leader"]:
        entries, name = {e["id"]: e for e in found["ranking"]}, found["objectives"][0]
        for id in winner.line(state, found["leader"]):
            e, c = entries.get(state.reused.get(id, id)), state.born[id]
            told = "; ".join(filter(None, (c.operator, c.mutation)))
            yield (f"* **{escaped(c.name)}** (`{id}`), {escaped(short_name(c.activation))}, by {escaped(told)}: "
                   f"{name} {_said(name, e['measured'][name]) if e else 'not measured yet'}")


def _lost(state: State, found: Summary) -> Iterator[str]:
    names, by = labels(state.born.values()), dict[tuple[str, str, str], list[str]]()
    for x in found["lost"]:
        amount, why = AMOUNT.fullmatch(x["why"]).groups()  # type: ignore[union-attr]
        told = f"{escaped(names[x['id']])} (`{x['run'] or x['id']}`" + f", {amount}" * bool(amount) + ")"
        by.setdefault((x["status"], x["phase"], why), []).append(told)
    if by:
        counts = Counter(x["status"] for x in found["lost"])
        yield from (listed([f"{n} {word}" for word, n in counts.items()]) + ".", "")
    for (status, phase, why), those in by.items():
        yield f"* {len(those)} {status} in the {phase}, {escaped(why)}: {', '.join(those)}"


def _first(found: Summary) -> str:
    return "winner" if found["verdict"] else "leader"


def _onward(experiment: Experiment, found: Summary, folder: Path) -> Iterator[str]:
    if found["verdict"] is None:
        yield from code([f"helios-evolve --resume {folder}"])
        yield ""
        yield "goes on with the experiment where it is, unless it is still at work."
    elif found["leader"]:
        yield from code([winner.command(winner.flag(folder), experiment.asked.base)])
        yield ""
        yield (f"trains with the winner's settings and the base run's {experiment.asked.base.train.steps:,} steps. "
               f"What learns fastest in {experiment.asked.evolve.per_candidate:,.10g} {experiment.asked.evolve.budget} "
               f"need not be best in a longer training: compare it with the preset at the length that counts.")
    if (warm := found["warm"]) and (weights := warm["weights"]):
        yield ""
        yield from code([winner.command(f"--init-from {shlex.quote(str(folder / RUNS / weights['run']))}",
                                        experiment.asked.base)])
        yield ""
        yield "trains on from the best weights that there are."
