import dataclasses

import numpy as np
import pytest

from helios.model import GPT, GPTConfig, Sampler, sample
from helios.model.sampling import choose
from helios.optim import AdamW

CFG = GPTConfig(vocab_size=50, block_size=40, n_layer=2, n_head=2, n_embd=24, activation="silu")
PROMPTS = [[1, 2, 3], [7], [4] * 35]


@pytest.fixture
def model(each_backend) -> GPT:
    m = GPT(CFG, each_backend, seed=3)
    m.load_state_dict({name: w * (20 if w.ndim == 2 else 1) for name, w in m.state_dict().items()})
    return m


def test_equal_arguments_give_equal_tokens(model):
    first = sample(model, PROMPTS, 10, seed=5)
    assert [len(row) for row in first] == [10, 10, 10]
    assert all(0 <= token < 50 for row in first for token in row)
    assert sample(model, PROMPTS, 10, seed=5) == first
    assert Sampler(model)(PROMPTS, 10, seed=5) == first
    assert sample(model, PROMPTS, 10, seed=6) != first
    assert sample(model, PROMPTS, 0) == [[], [], []]


def test_a_row_draws_alone(model):
    """Whatever the other rows are, and however many tokens are asked for."""
    whole = sample(model, PROMPTS, 10, seed=5)
    assert sample(model, [PROMPTS[0], [9]], 4, seed=5)[0] == whole[0][:4]
    assert sample(model, [PROMPTS[0]] * 2, 10, seed=5)[0] == whole[0] != sample(model, [PROMPTS[0]] * 2, 10, seed=5)[1]


def test_the_likeliest_token(model):
    greedy = sample(model, PROMPTS, 8, temperature=0)
    assert sample(model, PROMPTS, 8, temperature=1.0, top_k=1) == greedy
    for prompt, row in zip(PROMPTS, greedy, strict=True):
        ids = list(prompt)
        for token in row:
            assert token == model.logits(np.array([ids[-40:]])).numpy()[0, -1].argmax()
            ids.append(token)


def test_padding_changes_nothing(model):
    sampler = Sampler(model)
    rows = [[1, 2, 3], [5], list(range(20))]
    one, other = sampler.next_logits(rows, pad=0), sampler.next_logits(rows, pad=17)
    assert np.array_equal(one, other)
    for row, logits in zip(rows, one, strict=True):
        exact = model.logits(np.array([row])).numpy()[0, -1]
        assert np.abs(exact - logits).max() < 1e-5 * np.abs(exact).max()


def test_it_draws_from_soft_capped_logits(model):
    capped = GPT(dataclasses.replace(CFG, logit_softcap=0.5), model.backend)
    capped.load_state_dict(model.state_dict())
    for logits in (lambda m: Sampler(m).next_logits(PROMPTS), lambda m: m.logits(PROMPTS[2:]).numpy()):
        wanted = 0.5 * np.tanh(logits(model) / 0.5)
        assert np.abs(wanted).max() > 0.4
        np.testing.assert_allclose(logits(capped), wanted, rtol=0, atol=1e-6)
    assert sample(capped, PROMPTS, 10, seed=5) != sample(model, PROMPTS, 10, seed=5)


def test_context_is_the_last_block(model):
    long = np.random.default_rng(0).integers(0, 50, 90).tolist()
    sampler = Sampler(model)
    assert np.array_equal(sampler.next_logits([long]), sampler.next_logits([long[-40:]]))
    assert not np.array_equal(sampler.next_logits([long]), sampler.next_logits([long[-39:]]))
    assert sample(model, [long], 5, seed=1) == sample(model, [long[-40:]], 5, seed=1)


def test_each_row_stops_at_the_stop_token(model):
    free = sample(model, PROMPTS, 12, seed=2)
    stop = free[0][4]
    stopped = sample(model, PROMPTS, 12, seed=2, stop={stop})
    for row, whole in zip(stopped, free, strict=True):
        assert row == (whole[:whole.index(stop) + 1] if stop in whole else whole)
    assert stopped[0][-1] == stop and len(stopped[0]) <= 5


def test_a_recording_for_each_length_and_no_more(model):
    sampler = Sampler(model)
    sampler([[1, 2]], 35, seed=1)  # contexts of 2 … 36 tokens: padded to 32, then to 40
    assert len(sampler.capture.programs) == 2
    sampler([[3] * 50], 10)
    assert len(sampler.capture.programs) == 2


def test_weights_that_moved_and_changed_are_seen(model):
    before = sample(model, PROMPTS, 6, temperature=0)
    opt = AdamW(model.named_parameters(), lr=0.5)
    assert sample(model, PROMPTS, 6, temperature=0) == before
    model.loss(np.array([[1, 2, 3]]), np.array([[9, 9, 9]])).backward()
    opt.step()
    after = sample(model, PROMPTS, 6, temperature=0)
    assert after == Sampler(model)(PROMPTS, 6, temperature=0) != before


def test_choose_draws_from_the_softmax_of_the_likeliest():
    logits = np.array([0.0, 2.0, -1.0, 1.0, 2.0], np.float32)
    draw = np.random.default_rng(0)
    for top_k, kept in ((3, [1, 3, 4]), (None, range(5)), (0, range(5)), (99, range(5))):
        weights = np.where(np.isin(np.arange(5), kept), np.exp(logits / 0.7), 0)
        counts = np.bincount([choose(logits, 0.7, top_k, u) for u in draw.random(20_000)], minlength=5)
        p = weights / weights.sum()
        assert (np.abs(counts / 20_000 - p) <= 5 * np.sqrt(p * (1 - p) / 20_000)).all()
    assert choose(logits, 0.7, 1, 0.9) == choose(logits, 0, None, 0.9) == 1
    assert [choose(logits, 0.7, None, u) for u in (0.0, 1 - 2.0**-53)] == [1, 2]


@pytest.mark.parametrize(("prompts", "values", "words"), [
    ([[1], []], {}, "at least one token"),
    ([[50]], {}, r"must lie in \[0, 50\)"),
    ([[1]], {"temperature": -1.0}, "must not be negative"),
])
def test_errors(prompts, values, words):
    with pytest.raises(ValueError, match=words):
        sample(GPT(CFG, "cpu_ref"), prompts, 3, **values)
