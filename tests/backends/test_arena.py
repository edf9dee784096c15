"""All programs of a backend compute in the same memory, as much as the largest of them needs."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from helios import ops, random
from helios.backends.vulkan.backend import VulkanBackend
from helios.backends.vulkan.memory import ALIGN, Block, Chunk
from helios.backends.vulkan.program import VulkanProgram
from helios.backends.vulkan.stream import Command, Range
from helios.capture import Capture
from helios.errors import UserError
from helios.model import GPTConfig
from helios.tensor import Tensor
from helios.train.config import TrainConfig
from helios.train.device import memory_needed
from helios.train.state import TrainState

from .vulkan import make

MODEL = GPTConfig(vocab_size=301, block_size=32, n_layer=2, n_head=2, n_embd=32, dropout=0.1)


def chain(length: int) -> Callable[[Tensor], tuple[Tensor]]:
    """Products of which `length` are needed at the same time."""

    def fn(x: Tensor) -> tuple[Tensor]:
        parts = list(itertools.accumulate(range(length), lambda y, _: y @ x, initial=x))
        for part in parts[1:]:
            x = x + part
        return (x.sum(),)

    return fn


def program(capture: Capture) -> VulkanProgram:
    (found,) = capture.programs.values()
    assert isinstance(found, VulkanProgram)
    return found


class Work:
    """What a training does on a device: steps of two micro-steps, evaluation, samples."""

    def __init__(self, be: VulkanBackend) -> None:
        self.be, self.state = be, TrainState(MODEL, TrainConfig(accum=2, batch_size=4), be, seed=1)
        draw = np.random.default_rng(0)
        self.x, self.y = draw.integers(0, MODEL.vocab_size, (2, 4, 32)).astype(np.int32)

    def step(self) -> list[np.ndarray]:
        micro = self.x, self.y, random.state(1, 0)
        return list(self.state.submit([micro, (*micro, np.array([1e-2], np.float32))])())

    def micro(self) -> list[np.ndarray]:
        out = list(self.state.micro(self.x, self.y, random.state(1, 0)))
        self.state.opt.zero_grad(fill=True)
        self.be.assign(self.state.total.data, self.be.zeros(()))
        return out

    def evaluate(self) -> list[np.ndarray]:
        return [np.asarray(self.state.evaluate([(self.x, self.y)]))]

    def sample(self) -> list[np.ndarray]:
        return [np.asarray(self.state.sampler([[1, 2, 3]], 3))]

    def programs(self) -> list[VulkanProgram]:
        state = self.state
        captures = state.micro, state.last, state.evaluation, state.sampler.capture
        return [p for c in captures for p in c.programs.values() if isinstance(p, VulkanProgram)]


def poison(be: VulkanBackend) -> None:
    for page in be.arena.pages:
        assert page.chunk is not None
        be.queue.write(page.chunk, page.offset, np.full(page.size, 0xFF, np.uint8))


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::9])
def test_a_training_needs_what_its_largest_program_does(order: tuple[int, ...]) -> None:
    be = make(chunk_size=1 << 16)
    work, plain = Work(be), Work(make())
    be.flush()  # the optimizer's slabs
    before = be.heap.used
    calls = [Work.micro, Work.step, Work.evaluate, Work.sample]
    for i in order:
        for a, b in zip(calls[i](work), calls[i](plain), strict=True):
            np.testing.assert_array_equal(a, b)
    programs = work.programs()
    needs = sorted(p.arena_bytes for p in programs)
    assert len(programs) == 4 and needs[2] > needs[3] / 2 > 1 << 18
    assert be.arena.size == needs[-1]
    assert be.heap.used - before < needs[-1] + needs[-1] / 8  # and inputs and outputs
    for i in 2 * order:  # whatever the others leave behind
        poison(be)
        for a, b in zip(calls[i](work), calls[i](plain), strict=True):
            np.testing.assert_array_equal(a, b)


def test_it_moves_when_programs_come_and_go() -> None:
    be = make(chunk_size=1 << 16)
    x = np.random.default_rng(0).standard_normal((100, 100)).astype(np.float32) / 10
    captures = {length: Capture(chain(length), be) for length in (2, 9, 5)}
    expected = {length: captures[length](x)[0] for length in captures}
    assert be.arena.size == program(captures[9]).arena_bytes > 4 * program(captures[2]).arena_bytes
    del captures[9]
    for length in captures:
        assert captures[length](x)[0] == expected[length]
        assert be.arena.size == program(captures[5]).arena_bytes
    del captures[5]
    assert captures[2](x)[0] == expected[2]
    assert be.arena.size == program(captures[2]).arena_bytes
    del captures
    assert be.memory()["used"] == be.heap.used and be.arena.size == 0


def test_what_is_collected_computes_there_too() -> None:
    be = make(chunk_size=1 << 16)
    x = np.random.default_rng(0).standard_normal((100, 100)).astype(np.float32) / 10
    capture, lazy = Capture(chain(5), be), lambda length: chain(length)(Tensor(be.array(x), be))[0].numpy()
    expected = capture(x)[0]
    used, version = be.heap.used, be.arena.version
    less, more = lazy(4), lazy(9)
    assert be.arena.version > version and be.heap.used == used, "the larger moved it, and gave it back"
    version = be.arena.version
    assert lazy(4) == less and be.arena.version == version, "the smaller did not"
    assert capture(x)[0] == expected and lazy(9) == more and capture(x)[0] == expected


def test_pages_of_what_the_device_allocates_at_a_time() -> None:
    be, plain = make(chunk_size=1 << 16), make()
    be.arena.page = 5 * 40_192
    x = np.random.default_rng(0).standard_normal((100, 100)).astype(np.float32) / 10
    captures = {length: Capture(chain(length), be) for length in (3, 14, 8)}
    for _ in range(2):
        for length, capture in captures.items():
            assert capture(x)[0] == Capture(chain(length), plain)(x)[0]
    assert [p.size for p in be.arena.pages] == [be.arena.page] * 2 + [be.arena.size - 2 * be.arena.page]


def test_an_input_is_written_over_by_one_output() -> None:
    """Also where nothing reads the first output, which then ends where the input does."""
    be = make()
    x, unread, read = (Block(4 * ALIGN) for _ in range(3))
    whole = lambda block, access: Range(block, 0, block.size, access)
    found = be.arena.layout([
        Command("zero", [whole(x, "w")]),
        Command("both", [whole(x, "r"), whole(unread, "w"), whole(read, "w")], elementwise=True),
        Command("copy", [whole(read, "r"), whole(be.zeros((ALIGN,)).handle.block, "w")])])
    assert found.offsets[unread] != found.offsets[read]
    assert found.offsets[x] in (found.offsets[unread], found.offsets[read])


def test_what_does_not_fit_leaves_the_others_working(monkeypatch: pytest.MonkeyPatch) -> None:
    be = make(chunk_size=1 << 16)
    x = np.random.default_rng(0).standard_normal((100, 100)).astype(np.float32) / 10
    small = Capture(chain(3), be)
    expected = small(x)[0]
    large, size = Capture(chain(40), be), be.arena.size
    with monkeypatch.context() as patched:
        patched.setattr(be.device, "available", lambda: 20 * x.nbytes)
        with pytest.raises(UserError, match="out of memory") as error:
            large(x)
        assert small(x)[0] == expected
    del error
    assert small(x)[0] == expected and be.arena.size == size
    large(x)
    assert small(x)[0] == expected and be.arena.size == program(large).arena_bytes


def test_memory_stays_until_the_device_is_done_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of programs and arrays that nothing refers to any more, and of an arena that moved."""
    be, destroyed = make(chunk_size=1 << 16), []

    def destroy(chunk: Chunk) -> None:
        value = be.queue.vk.ffi.new("uint64_t[1]")
        be.queue.vk.lib.vkGetSemaphoreCounterValue(be.device.handle, be.queue._semaphore[0], value)
        destroyed.append(value[0])
        real(chunk)

    real = Chunk.destroy
    monkeypatch.setattr(Chunk, "destroy", destroy)
    x = np.eye(400, dtype=np.float32)
    for _ in range(3):
        weight = Tensor(be.array(x), be)
        capture = Capture(lambda t, weight=weight: (ops.gelu(t @ weight) @ t @ t,), be)
        destroyed.clear()
        read, number = capture.submit(x), be.queue.number
        del capture, read, weight
        gc.collect()
        assert not destroyed and be.queue.done < number
        be.array(x)
        be.arena.fit()
        assert len(destroyed) >= 6 and min(destroyed) >= number  # a slot's two, twice; its inputs; the arena
        assert be.arena.size == 0


@pytest.mark.parametrize(("shape", "batch", "accum"), [
    ({"activation": "swiglu"}, 4, 1), ({"activation": "swiglu"}, 4, 4), ({"vocab_size": 9000, "n_layer": 2}, 4, 2),
    ({"norm": "rms", "logit_softcap": 15.0, "resid_dropout": 0.0, "embd_dropout": 0.1}, 4, 2),
    ({"activation": "kan_spline", "n_embd": 128, "n_layer": 4}, 2, 2), ({"n_embd": 384, "n_layer": 2}, 1, 3),
    ({"qk_norm": True, "vocab_size": 100, "ffn_dim": 64, "n_layer": 1}, 8, 1), ({"vocab_size": 300}, 4, 1)])
def test_the_estimate_is_what_a_training_takes(shape: dict[str, Any], batch: int, accum: int) -> None:
    """With accumulation, too: recordings of steps, micro-steps and evaluations do not add up."""
    be, config = make(), GPTConfig(**{"n_layer": 3, "n_embd": 256, "n_head": 4, "dropout": 0.1, **shape})
    state = TrainState(config, TrainConfig(accum=accum, batch_size=batch), be, seed=1)
    state.prepare(batch, batch)
    assert 1.0 <= memory_needed(config, batch, turned=be.kind == "cpu") / be.memory()["used"] <= 1.1
