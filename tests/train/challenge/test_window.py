"""Challengers are drawn, and judged: pure functions, tried on many made-up windows."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from helios.errors import UserError
from helios.model.activations import activation, parsed
from helios.train.challenge.space import born, configured_as, own, space, window_config
from helios.train.challenge.window import Training, Window, judge, line, sentence, tried
from helios.train.challenge_config import ChallengeConfig
from helios.train.config import Config, resolve
from helios.train.plans import planned
from helios.train.search.births import Candidate
from helios.train.search.operators import PLACES, Genome, key

SIZE, REPLICATES = 2, ChallengeConfig().challenge_replicates
RATE = ChallengeConfig().challenge_error


def continuous(**settings: Any) -> Config:
    given = {"challenge_interval": 10, "challenge_steps": 5, "steps": 100} | settings
    return resolve("tiny", assignments=[f"{k}={v}" for k, v in given.items()])


# -- the test ---------------------------------------------------------------------------------------------------------

def windows(seed: int, better: float, count: int, noise: float = 0.02, shared: float = 0.05) -> list[dict[str, Any]]:
    """Made-up windows of two challengers, the first of which is `better` nats below the model, up to one that is
    switched to. Losses have normal noise of `noise` for each training, and of `shared` for each replicate, in all of
    its trainings alike, as batches give them: differences have noise · √2."""
    rng, champion, found = np.random.default_rng([seed, 7]), own(continuous()), []
    names = [Candidate(f"c{i}", f"C{i}", "gelu", 1, 0, settings={"lr": 1e-3 * (i + 1)}) for i in range(SIZE)]
    for number in range(1, count + 1):
        losses = 3.0 + shared * rng.standard_normal(REPLICATES) + noise * rng.standard_normal((SIZE + 1, REPLICATES))
        losses[1] -= better
        trained = [Training(own.tolist(), True, []) for own in losses[1:]]
        found.append(line(Window(number, 10 * number, 5, "", names), champion, losses[0].tolist(), trained, RATE))
        if found[-1]["winner"]:
            break
    return found


def test_equal_challengers_seldom_replace_the_model() -> None:
    switched = [windows(seed, 0.0, 1)[0]["verdict"] == "switch" for seed in range(2000)]
    assert 0.03 < np.mean(switched) <= RATE


@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_a_better_one_wins_within_three_windows(shared: float) -> None:
    """By 2 standard deviations of a difference between two trainings, however noisy the batches are."""
    found = [windows(seed, 2 * 0.02 * np.sqrt(2), 3, shared=shared)[-1] for seed in range(400)]
    assert np.mean([one["winner"] == "c0" for one in found]) >= 0.95
    assert np.mean([one["winner"] == "c1" for one in found]) <= RATE


@pytest.mark.parametrize(("challengers", "won"), [
    ([[2.9, 2.81, 2.91, 2.78], [2.5, 2.41, 2.52, 2.4]], 1),  # both are separated: the better one
    ([[3.1, 3.0, 3.11, 2.99]], None),  # separated, and worse
    ([[2.9, 2.81, 2.91, None]], None),  # a training came to nothing
    ([[2.9, 2.81, 2.91, 2.78], [None] * 4], 0),
    ([[3.0, 2.9, 3.01, 2.89]], None),  # the very same
])
def test_who_replaces_the_model(challengers: list[list[float | None]], won: int | None) -> None:
    judged, found = judge([3.0, 2.9, 3.01, 2.89], challengers, RATE)
    assert found == won and [one is None for one in judged] == [None in losses for losses in challengers]
    for one in judged:
        assert one is None or 0 <= one.p <= 1


def test_a_worse_one_hides_no_better_one() -> None:
    """The correction is for the number of challengers, and a window of one is judged at the whole rate."""
    model, close = [3.0, 3.0, 3.0, 3.0], [2.99, 2.97, 2.98, 2.95]
    alone, _ = judge(model, [close], RATE)
    beside, _ = judge(model, [close, [3.1, 3.2, 3.1, 3.2]], RATE)
    assert alone[0] and beside[0] and beside[0].p == pytest.approx(2 * alone[0].p) and alone[0].difference < 0


def test_the_line_of_a_window_is_plain_and_says_all() -> None:
    (found,) = windows(1, 1.0, 1)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["opened"], found["closed"], found["champion"], found["winner"]) == (10, 15, "gen0_gelu_1", "c0")
    said = sentence(found, own(continuous()))
    assert "c0 replaces gen0_gelu_1" in said and "lower by 0.9947 ± 0.0133 nats" in said and "p " in said


# -- births -----------------------------------------------------------------------------------------------------------

def drawn(config: Config, champion: Candidate | None = None, window: int = 1, seed: int = 0, count: int = 2,
          met: frozenset[str] = frozenset()) -> list[Candidate]:
    config = config.replaced("challenge", challengers=count).replaced("train", seed=seed)
    return born(config, space(config), champion or own(config), met, window, 1)


def test_each_differs_from_the_model_in_one_gene() -> None:
    config, seen = continuous(), set()
    for window in range(1, 60):
        for c in drawn(config, window=window):
            changed = {name for name in c.settings} | ({"activation"} if c.activation != "gelu" else set())
            gene = "dropouts" if changed <= set(PLACES) else "lr" if changed <= {"lr", "lr_min"} else changed.pop()
            seen.add(gene)
            assert c.generation == window and c.parent_id == "gen0_gelu_1" and c.lineage == ["gen0_gelu_1"]
            assert configured_as(config, c).train.steps == 100
    assert seen == {"activation", "dropouts", "lr", "n_layer"}


def test_draws_depend_on_seed_and_window_alone() -> None:
    config = continuous()
    assert drawn(config, window=3) == drawn(config, window=3)
    assert drawn(config, window=3) != drawn(config, window=4) and drawn(config, seed=1) != drawn(config, seed=2)


def test_nobody_meets_the_same_champion_twice_while_there_are_others() -> None:
    config = continuous(challenge_genes="activation", activation_pool="gelu,relu,silu,universal")
    met: set[str] = set()
    for window in range(1, 4):
        (c,) = drawn(config, window=window, count=1, met=frozenset(met))
        assert key(c.genome) not in met
        met.add(key(c.genome))
    assert len(met) == 3
    again = drawn(config, window=4, count=2, met=frozenset(met))
    assert len({key(c.genome) for c in again}) == 2 and {key(c.genome) for c in again} <= met
    assert [c.activation for c in drawn(continuous(challenge_genes="activation", activation_pool="gelu|relu"),
                                        count=5)] == ["relu"]


def test_initial_values_alone_make_no_challenger() -> None:
    """The model has learned values for those coefficients, so that it would be the very same."""
    config = continuous(activation="a*silu(x)+b*x; a=1, b=0", genome="formula", challenge_genes="activation",
                        activation_pool="universal")
    (mine,) = parsed("", config.model.activation)
    found = [activation(c.activation) for window in range(1, 40) for c in drawn(config, window=window)]
    assert len(found) == 78 and all(one.function != mine.function for one in found)
    assert not drawn(continuous(activation="universal", challenge_genes="activation",
                                activation_pool="universal|a*silu(x)+b*x; a=2, b=0"))


def test_a_new_champion_meets_everybody_again() -> None:
    lines = [{"champion": "a", "challengers": [{"activation": "relu", "settings": {}}]},
             {"champion": "b", "challengers": [{"activation": "gelu", "settings": {"lr": 0.5}}]}]
    champion = own(continuous())
    at = lambda id: tried(lines, Candidate(id, "", "gelu", 0, 0))
    assert at("a") == [key(Genome("relu"))] and at("b") == [key(Genome("gelu", {"lr": 0.5}))] and not at(champion.id)


def test_a_child_of_a_champion_keeps_what_that_has_changed() -> None:
    config = continuous(challenge_genes="dropout=0|0.5,lr=1e-2|1e-3")
    champion = Candidate("gen1_gelu_2", "G-Alpha.1", "gelu", 1, 0, settings={"lr": 1e-3}, lineage=["gen0_gelu_1"])
    for c in drawn(config, champion, window=2, count=5):
        whole = configured_as(config, c)
        assert (whole.train.lr == 1e-3) != (whole.model.dropout == 0.1) and c.lineage == ["gen0_gelu_1", "gen1_gelu_2"]


@pytest.mark.parametrize(("genes", "values"), [
    ("n_head", {2, 8}), ("n_head=3|8", {8}), ("n_head=3..9", {8}), ("n_embd=10..40", {24, 28, 36, 40}),
    ("n_embd=10..13", {12}), ("n_embd=30|36|50", {36}), ("n_embd=9..23", {20}),
    ("ffn_dim=64|128", {64}), ("ffn_dim=64|128|512", {512}), ("ffn_dim=matched|256", {256})])
def test_only_values_that_were_given_and_do_something_are_drawn(genes: str, values: set[int]) -> None:
    """The tiny model has 4 heads, width 32 and MLPs of 128. Nothing else changes along."""
    config, seen = continuous(challenge_genes=genes), set()
    for window in range(1, 40):
        for c in drawn(config, window=window):
            ((name, value),) = c.settings.items()
            assert name == genes.partition("=")[0]
            seen.add(value)
    assert seen == values


def test_values_go_with_the_champions_settings() -> None:
    config = continuous(challenge_genes="n_head,n_embd=24..48")
    champion = Candidate("gen1_gelu_2", "G-Alpha.1", "gelu", 1, 0, settings={"n_embd": 36, "grad_clip": 0.5})
    seen = {(c.settings.get("n_head", 4), c.settings.get("n_embd", 32)) for window in range(1, 40)
            for c in drawn(config, champion, window=window)}
    assert seen == {(2, 36), (6, 36), (4, 32), (4, 40)}  # the neighbours of 4 that divide 36, and multiples of 4
    for c in drawn(config, champion, count=9):  # clipping, which a branch brought, is no gene, and stays
        assert c.settings["grad_clip"] == 0.5 and "grad_clip" not in (c.mutation or "")


def test_the_rates_end_goes_down_with_it_unless_it_is_a_gene() -> None:
    (c,) = drawn(continuous(challenge_genes="lr=1e-6|1e-5", lr=1e-5, lr_min=1e-5), count=1)
    assert c.settings == {"lr": 1e-6, "lr_min": 1e-6}
    with pytest.raises(UserError, match="gene lr: no value goes with"):
        space(continuous(challenge_genes="lr=1e-6|1e-5,lr_min=2e-6|5e-6", lr=1e-5, lr_min=1e-5))


def test_an_auto_is_called_so() -> None:
    assert [c.mutation for c in drawn(continuous(challenge_genes="ffn_dim=64|128"))] == ["ffn_dim auto→64"]


def test_no_two_of_a_window_are_the_same() -> None:
    champion = Candidate("gen1_gelu_2", "G-Alpha.1", "gelu", 1, 0, settings={"ffn_dim": 64})
    found = drawn(continuous(challenge_genes="ffn_dim=64|128|matched"), champion, count=5)
    assert len(found) == 1  # auto, 128 and matched are one


@pytest.mark.parametrize(("genes", "words"), [
    ("lr,heads9", "unknown gene 'heads9'"), ("batch_size", "on its batches"), ("block_size", "on its batches"),
    ("micro_batch", "on its batches"), ("seed", "alike in it"), (",", "unknown gene"),
    ("lr,lr", "gene lr is there twice"),
    ("zero_init_outputs", "says how new ones begin"), ("activation=foo|gelu", "s: gene activation: given"),
    ("n_head=3|5", "no value goes with the run's other settings (n_embd: given 32, expected a multiple of n_head"),
    ("n_embd=33..35", "gene n_embd: no value goes"), ("lr_min=2e-2|1e-1", "no value goes"),
    ("ffn_dim=128|auto", "no value makes another training"), ("cusum_slack=0.1|1", "monitors stay"),
    ("track_layer_grads=true|false", "monitors stay"), ("dynamic_lr=none|cusum", "monitors stay"),
    ("lr=1e-2..1e-3", "is empty"), ("n_layer=1|1", "one value"), ("simd_width", "as the run does")])
def test_genes_that_a_run_cannot_change(genes: str, words: str) -> None:
    with pytest.raises(UserError, match="challenge_genes: ") as error:
        space(continuous(challenge_genes=genes))
    assert words in str(error.value)


@pytest.mark.parametrize("given", ["challengers=9", "challenge_error=0.001", "challenge_genes=lr"])
def test_settings_of_windows_need_windows(given: str) -> None:
    words = rf"^{given.split('=')[0]} is of windows of challengers, and nothing opens one; give --search continuous or"
    for more, base in (["steps=50"], None), (["mode=ffn-activation"], None), ([], resolve("tiny").to_dict()):
        with pytest.raises(UserError, match=words):
            resolve("tiny", assignments=[given, *more], base=base)
    for more in "mode=continuous", "actions=plateau: branch":
        assert resolve("tiny", assignments=[given, more, "steps=500"]).challenged
    assert not resolve("tiny", assignments=["challengers=2", f"challenge_genes={ChallengeConfig().challenge_genes}"]
                       ).challenged


# -- settings ---------------------------------------------------------------------------------------------------------

def test_a_run_without_challengers_has_no_trace_of_them() -> None:
    plain, config = resolve("tiny"), continuous()
    assert not plain.challenged and not {"challenge", "search"} & plain.to_dict().keys()
    assert config.challenged and not config.search and resolve(base=config.to_dict()) == config
    device = {"name": "x"}
    assert plain.fingerprint(device) != config.fingerprint(device)
    inner = window_config(config, 5, 4)
    assert not inner.challenged and inner.train.steps == 5 and inner.model == config.model


@pytest.mark.parametrize(("given", "words"), [
    ({"eval_interval": 0}, "--eval-interval 0"), ({"challenge_on": "cusun"}, "did you mean cusum"),
    ({"challenge_on": "tps"}, "the machine's"), ({"challenge_interval": 0}, "would ever open"),
    ({"challenge_steps": 90}, "lower challenge_steps or challenge_interval, or give"),
    ({"challenge_steps": 99, "challenge_on": "cusum"}, "lower challenge_steps, or give more --steps"),
    ({"dynamic_lr": "entropy"}, "give cusum, or --search ffn-activation"),
    ({"generations": 3}, "generations is of a search before"),
    ({"mode": "ffn-activation"}, "challenge_interval opens windows"), ({"mode": "none"}, "leave it out"),
    ({"challenge_replicates": 1}, "from 2 to 32"),
    ({"challenge_on": "grad", "cusum": "false"}, "cusum = true"),
    ({"challenge_on": "plateau", "plateau_evals": 0}, "plateau_evals")])
def test_settings_that_do_not_go_together(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        planned(continuous(**given)).check()
    assert words in str(error.value)


def test_an_alert_has_one_name_with_or_without_its_prefix() -> None:
    first, second = (continuous(challenge_on=names).challenge for names in ("grad,plateau", "plateau, cusum_grad"))
    assert first.alerts == second.alerts == {"cusum_grad"} and first.plateau == second.plateau
    with pytest.raises(UserError, match="must not decide"):
        continuous(challenge_on="cusum_tps")
