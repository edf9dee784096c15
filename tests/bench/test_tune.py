"""Tiles found by measuring: kept, found again, ignored where they are not what they should be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from helios.backends.cpu_ref import CpuRef
from helios.backends.vulkan import tuning
from helios.backends.vulkan.backend import VulkanBackend
from helios.backends.vulkan.device import DeviceProfile
from helios.backends.vulkan.tuning import TILES
from helios.bench import measure, tune
from helios.bench.registry import Sizes, rows
from helios.cli import bench, info
from helios.errors import UserError
from helios.train.config import resolve
from helios.train.device import open_backend, tuned

KERNEL = "matmul_cpu"
PROFILE = SimpleNamespace(name="a device", driver="1.0", subgroup_size=16, shared_bytes=32768, max_lanes=256,
                          features=("shaderInt64",))
TABLE = rows(Sizes.of(resolve("tiny").model, 4))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for tiles alone: compiled kernels stay where all tests find them."""
    monkeypatch.setattr(tuning, "cache_dir", lambda: tmp_path)
    return tmp_path


@pytest.fixture(params=[None, "simt"])
def vulkan(request: pytest.FixtureRequest) -> VulkanBackend:
    try:
        return VulkanBackend(profile=request.param)
    except UserError as error:
        pytest.skip(f"no Vulkan device: {error}")


def test_kept_by_device_driver_and_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuning.load(PROFILE, KERNEL) == {}
    tuning.save(PROFILE, KERNEL, {"nt 64 64 64": TILES[KERNEL][1]})
    assert tuning.load(PROFILE, KERNEL) == {"nt 64 64 64": TILES[KERNEL][1]}
    for other in ({"name": "another"}, {"driver": "1.1"}, {"subgroup_size": 8}):
        assert tuning.load(SimpleNamespace(**{**vars(PROFILE), **other}), KERNEL) == {}
    source = tuning.shaders.source
    monkeypatch.setattr(tuning.shaders, "source", lambda *args: source(*args) + "\n")
    assert tuning.load(PROFILE, KERNEL) == {}


def test_a_run_takes_what_was_found_or_the_kernels_own(vulkan: VulkanBackend) -> None:
    opened = lambda tiles: open_backend("vulkan", None, lambda text: None, tiles=tiles)
    be = opened("tuned")
    tuning.save(be.profile, be.matmul_kernel,
                found := {"nt 64 64 64": tuning.candidates(be.profile, be.matmul_kernel)[-1]})
    assert be.tiles == {} and opened("tuned").tiles == found and opened("default").tiles == {}


def test_what_was_chosen_is_shown() -> None:
    try:
        be = VulkanBackend()
    except UserError as error:
        pytest.skip(f"no Vulkan device: {error}")
    assert tuned(be) == {} == tuned(CpuRef())
    tile = TILES[be.matmul_kernel][1]
    be.tiles = {"nt 64 64 64": tile}
    tuning.save(be.profile, be.matmul_kernel, be.tiles)
    (words,) = tuned(be).values()
    assert words == f"{be.matmul_kernel} " + " ".join(f"{name} {size}" for name, size in tile.items())
    result = CliRunner().invoke(info.main, [])
    name = f"[{be.profile.index}] {be.device_name}, {be.matmul_kernel}"
    assert f"tuned {name}, nt 64 64 64: {words}" in result.output.splitlines()


@pytest.mark.parametrize("content", [
    b"", b"{", b"\xff\xfe", b"[]", b"3", b'{"nt 64 64 64": 7}', b'{"nt 64 64 64": {"RA": 4}}',
    b'{"nt 64 64 64": {"RA": 99, "CB": 4, "KU": 4}}',
])
def test_a_damaged_file_is_ignored(content: bytes) -> None:
    tuning.save(PROFILE, KERNEL, {})
    tuning.path(PROFILE, KERNEL).write_bytes(content)
    assert tuning.load(PROFILE, KERNEL) == {}


def test_shape_classes() -> None:
    assert tuning.shape_class(False, True, 2048, 704, 256) == "nt 2048 1024 256"
    assert tuning.shape_class(True, False, 1, 3, 4000) == "tn 1 4 4096"
    found = tune.classes(rows(Sizes.of(resolve("historic-6l").model, 8)))
    assert found["nt 2048 1024 256"].shape == "2048x1024x256" and len(found) == 15


@pytest.fixture
def few(vulkan: VulkanBackend, monkeypatch: pytest.MonkeyPatch) -> VulkanBackend:
    """Of all tiles the first two and the last: each is compiled for each product, which takes a driver long."""
    first, second, *_, last = TILES[vulkan.matmul_kernel]
    monkeypatch.setitem(TILES, vulkan.matmul_kernel, (first, second, last))
    return vulkan


def test_tune(few: VulkanBackend) -> None:
    vulkan = few
    products = list(tune.classes(TABLE).values())[:3]
    assert [row.op for row in products] == ["matmul_nt", "matmul_nn", "matmul_tn"]
    choices = list(tune.tune(vulkan, products, measure.QUICK))
    assert vulkan.tiles == {c.name: c.tile for c in choices}
    tuning.save(vulkan.profile, vulkan.matmul_kernel, vulkan.tiles)
    assert VulkanBackend(profile=vulkan.profile.profile).tiles == vulkan.tiles


def test_only_a_vulkan_device_has_tiles() -> None:
    with pytest.raises(UserError, match="has no tiles to choose"):
        next(tune.tune(CpuRef(), TABLE, measure.QUICK))


def test_candidates_fit_shared_memory() -> None:
    for size, numbers in ((32768, {"matmul_cpu": 9, "matmul": 5, "matmul_coopmat": 1}), (49152, {"matmul_coopmat": 4})):
        for kernel, number in numbers.items():
            assert len(tuning.candidates(SimpleNamespace(**vars(PROFILE) | {"shared_bytes": size}), kernel)) == number


@pytest.mark.parametrize(("ta", "tb"), [(False, False), (False, True), (True, False), (True, True)])
def test_a_tile_is_used_and_changes_no_bit(vulkan: VulkanBackend, ta: bool, tb: bool) -> None:
    for m, n, k in ((130, 130, 130), (67, 131, 35), (132, 136, 40)):
        draw, products = np.random.default_rng(0), []
        shapes = (k, m) if ta else (m, k), (n, k) if tb else (k, n)
        x, y = (draw.standard_normal(shape).astype(np.float32) for shape in shapes)
        for tile in tuning.candidates(vulkan.profile, vulkan.matmul_kernel):
            vulkan.tiles = {tuning.shape_class(ta, tb, m, n, k): tile}
            products.append(vulkan.numpy(vulkan.matmul(vulkan.array(x), vulkan.array(y), ta, tb)))
            sizes = tile.items() - {("KB", 256)}  # fewer where K is shorter
            assert any(sizes <= kernel.defines.items() for kernel in vulkan.pipelines.kernels.values())
        np.testing.assert_allclose(products[0], (x.T if ta else x) @ (y.T if tb else y), rtol=1e-4, atol=1e-4)
        assert len({p.tobytes() for p in products}) == 1


@pytest.mark.parametrize("vulkan", [None], indirect=True)
def test_command(few: VulkanBackend) -> None:
    result = CliRunner().invoke(bench.main, ["tune", "--preset", "tiny", "--quick"])
    assert result.exit_code == 0, result.output
    path = tuning.path(few.profile, VulkanBackend().matmul_kernel)
    assert path.exists() and str(path) in result.output


def test_profiles_have_what_the_key_needs() -> None:
    assert {"name", "driver", "subgroup_size", "shared_bytes"} <= {f.name for f in dataclasses.fields(DeviceProfile)}
