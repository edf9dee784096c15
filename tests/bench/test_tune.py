"""Tiles found by measuring: kept, found again, ignored where they are not what they should be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from helios.backends.vulkan import tuning
from helios.backends.vulkan.backend import VulkanBackend
from helios.backends.vulkan.tuning import TILES
from helios.bench import measure, tune
from helios.bench.registry import Sizes, rows
from helios.cli import bench
from helios.errors import UserError
from helios.train.config import resolve

PROFILE = SimpleNamespace(name="a device", driver="1.0", subgroup_size=16, profile="cpu")
TABLE = rows(Sizes.of(resolve("tiny").model, 4))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HELIOS_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def vulkan() -> VulkanBackend:
    try:
        return VulkanBackend()
    except UserError as error:
        pytest.skip(f"no Vulkan device: {error}")


def test_kept_by_device_driver_and_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuning.load(PROFILE) == {}
    tuning.save(PROFILE, {"nt 64 64 64": TILES[1]})
    assert tuning.load(PROFILE) == {"nt 64 64 64": TILES[1]}
    for other in ({"name": "another"}, {"driver": "1.1"}, {"subgroup_size": 8}, {"profile": "simt"}):
        assert tuning.load(SimpleNamespace(**{**vars(PROFILE), **other})) == {}
    source = tuning.shaders.source
    monkeypatch.setattr(tuning.shaders, "source", lambda *args: source(*args) + "\n")
    assert tuning.load(PROFILE) == {}


@pytest.mark.parametrize("content", [
    b"", b"{", b"\xff\xfe", b"[]", b"3", b'{"nt 64 64 64": 7}', b'{"nt 64 64 64": {"RA": 4}}',
    b'{"nt 64 64 64": {"RA": 99, "CB": 4, "KU": 4}}',
])
def test_a_damaged_file_is_ignored(content: bytes) -> None:
    tuning.save(PROFILE, {})
    tuning.path(PROFILE).write_bytes(content)
    assert tuning.load(PROFILE) == {}


def test_shape_classes() -> None:
    assert tuning.shape_class(False, True, 2048, 704, 256) == "nt 2048 1024 256"
    assert tuning.shape_class(True, False, 1, 3, 4000) == "tn 1 4 4096"
    found = tune.classes(rows(Sizes.of(resolve("historic-6l").model, 8)))
    assert found["nt 2048 1024 256"].shape == "2048x1024x256" and len(found) == 12


def test_tune(vulkan: VulkanBackend) -> None:
    if vulkan.profile.profile != "cpu":
        with pytest.raises(UserError, match="has no tiles to choose"):
            next(tune.tune(vulkan, TABLE, measure.QUICK))
        return
    choices = list(tune.tune(vulkan, TABLE, measure.QUICK))
    assert vulkan.tiles == {c.name: c.tile for c in choices}
    tuning.save(vulkan.profile, vulkan.tiles)
    assert VulkanBackend().tiles == vulkan.tiles


def test_a_tile_is_used_and_changes_no_bit(vulkan: VulkanBackend) -> None:
    if vulkan.profile.profile != "cpu":
        pytest.skip("only CPU devices have tiles to choose")
    x, y = np.random.default_rng(0).standard_normal((2, 130, 130)).astype(np.float32)
    products = []
    for tile in TILES:
        vulkan.tiles = {tuning.shape_class(False, True, 130, 130, 130): tile}
        products.append(vulkan.numpy(vulkan.matmul(vulkan.array(x), vulkan.array(y), tb=True)).tobytes())
        assert any(tile.items() <= kernel.defines.items() for kernel in vulkan.pipelines.kernels.values())
    assert len(set(products)) == 1


def test_command(vulkan: VulkanBackend) -> None:
    result = CliRunner().invoke(bench.main, ["tune", "--preset", "tiny", "--quick"])
    if vulkan.profile.profile != "cpu":
        assert result.exit_code == 2 and "has no tiles to choose" in result.stderr
        return
    assert result.exit_code == 0, result.output
    assert tuning.path(vulkan.profile).exists() and str(tuning.path(vulkan.profile)) in result.output


def test_profiles_have_what_the_key_needs(vulkan: VulkanBackend) -> None:
    assert {"name", "driver", "subgroup_size", "profile"} <= {f.name for f in dataclasses.fields(vulkan.profile)}
