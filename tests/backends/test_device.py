"""Device choice, the environment of lavapipe, and errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helios import ops
from helios.backends.vulkan import environment
from helios.backends.vulkan.backend import VulkanBackend
from helios.backends.vulkan.device import choose, describe, vulkan
from helios.backends.vulkan.memory import Block
from helios.backends.vulkan.profile import DeviceProfile
from helios.errors import DeviceLost, NoDevice, TooLarge, UserError
from helios.tensor import tensor
from helios.train.device import open_backend

from .vulkan import PROFILE, make


def python(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True,
                          env={**os.environ, **env})


def devices(*names_and_types: tuple[str, str]) -> list[DeviceProfile]:
    return [replace(PROFILE, index=i, name=name, type=type_) for i, (name, type_) in enumerate(names_and_types)]


CPUS = devices(("SwiftShader Device (LLVM 10.0.0)", "cpu"), ("llvmpipe (LLVM 15.0.6, 512 bits)", "cpu"))
HOST = devices(("llvmpipe (LLVM 15.0.6, 256 bits)", "cpu"), ("NVIDIA L40", "discrete"), ("NVIDIA L4", "discrete"),
               ("Intel(R) UHD Graphics 770", "integrated"))


@pytest.mark.parametrize(("found", "wanted", "index"), [
    (CPUS, "0", 0), (CPUS, "1", 1), (CPUS, " 1 ", 1), (CPUS, "swift", 0), (CPUS, "LLVMPIPE", 1), (CPUS, None, 1),
    (CPUS[:1], None, 0), (HOST, "nvidia l4", 2), (HOST, "L40", 1), (HOST, None, 1), (HOST[:1] + HOST[3:], None, 3)])
def test_a_device_is_chosen_by_index_by_name_or_by_kind(found: list[DeviceProfile], wanted: str | None, index: int
                                                        ) -> None:
    assert choose(found, wanted).index == index


@pytest.mark.parametrize(("found", "wanted", "message"), [
    (CPUS[:1], "1", r"no Vulkan device '1'; this machine has \[0\] SwiftShader Device \(LLVM 10.0.0\)$"),
    (CPUS, "5", "no Vulkan device '5'; "), (CPUS, "15", "no Vulkan device '15'; "), (CPUS, " ", "no Vulkan device ' '"),
    (CPUS, "", "no Vulkan device ''"), (CPUS, "no such device", "no Vulkan device 'no such device'; "),
    (CPUS, "e", r"2 Vulkan devices are named 'e'; choose one by its index: \[0\] Swift.*, \[1\] llvmpipe"),
    (HOST, "nvidia", "2 Vulkan devices are named 'nvidia'"),
    (HOST[2:3] * 2, "NVIDIA L4", "2 Vulkan devices are named 'NVIDIA L4'")])
def test_a_name_of_none_or_of_several_is_refused_with_those_there_are(found: list[DeviceProfile], wanted: str,
                                                                      message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose(found, wanted)


def test_the_choice_among_devices_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    make()
    said: list[str] = []
    be = open_backend("vulkan", None, said.append)
    monkeypatch.setattr(be, "others", [])
    open_backend("auto", None, said.append)
    said.clear()
    monkeypatch.setattr(be, "others", ["[1] SwiftShader"])
    open_backend("auto", None, said.append)
    assert said == [f"computing on {be.device_name}; --device chooses another: [1] SwiftShader"]


def test_no_driver_is_named_in_terms_of_vulkan() -> None:
    """The library knows no command line: what to do there, commands add (train/device.py)."""
    done = python("from helios.backends import get_backend\nget_backend('vulkan')", VK_DRIVER_FILES="/nonexistent.json",
                  VK_ICD_FILENAMES="/nonexistent.json")
    error = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and error.startswith("helios.errors.NoDevice: ")
    assert "VK_DRIVER_FILES=/nonexistent.json chooses the drivers: unset it" in error
    assert "--" not in error and "run" not in error


@pytest.mark.parametrize(("error", "raised", "words"), [
    ("VkErrorDeviceLost", DeviceLost, "was lost as it was opened"),
    ("VkErrorInitializationFailed", NoDevice, "cannot be opened")])
def test_a_device_that_cannot_be_opened_is_one_line(monkeypatch: pytest.MonkeyPatch, error: str, raised: type,
                                                    words: str) -> None:
    def refuse(*args: object) -> None:
        raise getattr(vulkan(), error)

    make()  # there is a device
    monkeypatch.setattr(vulkan(), "vkCreateDevice", refuse)
    with pytest.raises(raised, match=words):
        VulkanBackend()


def test_describe() -> None:
    make()
    what = json.loads(json.dumps(describe()))
    assert what["devices"][0]["subgroup_size"] > 0 and "glslang" in what["compiler"] and what["caches"]["driver"]


WIDTH = """
from helios.backends.vulkan import environment
import os
environment.cpu_flags = lambda: {flags!r}
environment.prepare()
print(os.environ.get("LP_NATIVE_VECTOR_WIDTH"), os.environ.get("MESA_SHADER_CACHE_DIR"))
"""


@pytest.mark.parametrize(("flags", "given", "width"), [
    (environment.AVX512, None, "512"), ({"avx2"}, None, "None"), (environment.AVX512, "256", "256")])
def test_simd_width(flags: set[str], given: str | None, width: str, tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k not in ("LP_NATIVE_VECTOR_WIDTH", "MESA_SHADER_CACHE_DIR")}
    env |= {"HELIOS_CACHE": str(tmp_path)} | ({"LP_NATIVE_VECTOR_WIDTH": given} if given else {})
    done = subprocess.run([sys.executable, "-P", "-c", WIDTH.format(flags=set(flags))], capture_output=True, text=True,
                          env=env, check=True)
    found, folder = done.stdout.split()
    assert found == width
    assert folder == str(tmp_path / f"mesa-{'default' if width == 'None' else width}")  # one folder a width


@pytest.mark.parametrize(("given", "width", "folder"), [
    ("shaders", "256", "shaders/mesa-256"), ("shaders", None, "shaders/mesa-default"),
    ("shaders/mesa-256", "256", "shaders/mesa-256"),  # inherited from a process of this width …
    ("shaders/mesa-512", "256", "shaders/mesa-256"), ("shaders/mesa-512", None, "shaders/mesa-default"),  # … or another
    ("shaders/mesa-vega", "256", "shaders/mesa-vega/mesa-256")])
def test_a_width_has_its_own_folder_wherever_the_user_wants_the_cache(
        given: str, width: str | None, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cpu_flags", set)
    monkeypatch.setenv("MESA_SHADER_CACHE_DIR", str(tmp_path / given))
    if width is None:
        monkeypatch.delenv("LP_NATIVE_VECTOR_WIDTH", raising=False)
    else:
        monkeypatch.setenv("LP_NATIVE_VECTOR_WIDTH", width)
    environment.prepare.__wrapped__()
    assert os.environ["MESA_SHADER_CACHE_DIR"] == str(tmp_path / folder) and (tmp_path / folder).is_dir()


def test_without_a_place_there_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MESA_SHADER_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("LP_NATIVE_VECTOR_WIDTH", "256")
    monkeypatch.setenv("MESA_SHADER_CACHE_DISABLE", "")
    environment.prepare.__wrapped__()
    assert os.environ["MESA_SHADER_CACHE_DISABLE"] == "true"


@pytest.mark.parametrize("width", ["64", "1024", "32", "0", "2048", "-1", "wide"])
def test_other_simd_widths_are_refused(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LP_NATIVE_VECTOR_WIDTH", width)
    with pytest.raises(UserError, match=f"LP_NATIVE_VECTOR_WIDTH: given '{width}', expected 128, 256 or 512"):
        environment.prepare.__wrapped__()


def test_a_width_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    environment.prepare()
    monkeypatch.setenv(environment.WIDTH, "256")
    environment.choose_width("256")
    with pytest.raises(UserError, match="simd_width: given 128, and this process computes with 256 already"):
        environment.choose_width("128")


CHECKED = """
from helios.backends import get_backend
from helios.backends.vulkan import environment
environment.WIDTHS += ("1024",)
print(get_backend("vulkan").submits)
"""


def test_a_driver_that_computes_wrongly_is_refused(tmp_path: Path) -> None:
    if make().profile.type != "cpu":
        pytest.skip("only lavapipe can be made to compute wrongly")
    done = python(CHECKED, LP_NATIVE_VECTOR_WIDTH="1024", HELIOS_CACHE=str(tmp_path), MESA_SHADER_CACHE_DIR="")
    assert re.search(r"UserError: llvmpipe .* computes wrongly: .* \(llvmpipe Mesa .*, 32 lanes\)", done.stderr)
    assert not list(tmp_path.glob("checked-*")), "only what is right is remembered"


def test_a_driver_is_checked_once(tmp_path: Path) -> None:
    make()
    first, second = (python(CHECKED, HELIOS_CACHE=str(tmp_path), MESA_SHADER_CACHE_DIR="") for _ in range(2))
    assert int(first.stdout) > 0 == int(second.stdout) and len(list(tmp_path.glob("checked-*"))) == 1


def test_a_cache_that_cannot_be_written_to_is_named_once(tmp_path: Path) -> None:
    make()
    (tmp_path / "file").touch()
    code = "from helios.tensor import tensor\nx = tensor([[2.0]])\nprint(((x @ x) * 2).sum().item())"
    done = python(code, HELIOS_CACHE=str(tmp_path / "file"), MESA_SHADER_CACHE_DIR="")
    assert done.stdout == "8.0\n"
    assert done.stderr.count("Warning") == 1 and f"cannot write to the cache folder {tmp_path / 'file'}" in done.stderr


def test_kernels_are_read_in_any_locale(tmp_path: Path) -> None:
    make()
    done = python("from helios.tensor import tensor\nprint((tensor([1.0]) * 2).item())", LC_ALL="C", PYTHONUTF8="0",
                  HELIOS_CACHE=str(tmp_path), MESA_SHADER_CACHE_DIR="")
    assert done.stdout == "2.0\n", done.stderr


@pytest.mark.parametrize("width", ["128", "256"])
def test_other_simd_widths_compute_the_same(width: str) -> None:
    """Kernels take their tile from the subgroup's size: 4 and 8 lanes, not only 16."""
    if make().profile.type != "cpu":
        pytest.skip("only lavapipe's SIMD width can be chosen")
    code = """
import numpy as np
from helios import ops
from helios.backends import get_backend
from helios.formula import Formula
from helios.tensor import tensor
r = np.random.default_rng(0)
x, w = r.standard_normal((2, 33, 30)).astype("f"), r.standard_normal((50, 30)).astype("f")
be = get_backend("vulkan")
gelu = Formula.parse("gelu(x)")
for f in (lambda b: ops.linear(tensor(x, b), tensor(w, b), gelu), lambda b: ops.attention(tensor(x, b), 2, 3.0)):
    np.testing.assert_allclose(f(be).numpy(), f("cpu_ref").numpy(), atol=1e-5)
print(be.profile.subgroup_size)
"""
    done = python(code, LP_NATIVE_VECTOR_WIDTH=width, MESA_SHADER_CACHE_DISABLE="true")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == int(width) // 32


def test_too_large_is_refused_with_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    be = make()
    with pytest.raises(TooLarge, match=r"out of memory on .*: one array of [\d,]+ MiB needed, [\d,]+ MiB the most"):
        be.heap.allocate(Block(be.profile.max_allocation + 1))
    monkeypatch.setattr(be.device, "available", lambda: 2**20)
    with pytest.raises(TooLarge, match=r"out of memory on .*: [\d,]+ MiB more needed, 1 MiB available"):
        be.heap.allocate(Block(2**28))
    monkeypatch.undo()

    def full(*given: object) -> None:
        raise be.device.vk.VkErrorOutOfDeviceMemory

    with monkeypatch.context() as patch, pytest.raises(TooLarge, match=r"out of memory on .*: 256 MiB more needed"):
        patch.setattr(be.device.vk, "vkAllocateMemory", full)
        be.heap.allocate(Block(2**28))
    assert tensor(np.ones(3, np.float32), be).sum().item() == 3.0, "the backend still works"


def test_more_elements_than_kernels_can_count() -> None:
    with pytest.raises(ValueError, match="the limit is 2,147,483,647"):
        make().empty((2**16, 2**16))


def test_arrays_that_cannot_be_are_refused() -> None:
    be = make()
    with pytest.raises(ValueError, match="has no elements"):
        tensor(np.zeros((3, 0)), be)
    with pytest.raises(ValueError, match="must fit int32, got 1 to 1099511627776"):
        tensor(np.array([1, 2**40]), be)
    assert tensor(np.array([1, 2]), be).numpy().dtype == np.int32


def test_index_out_of_range_is_nan_not_a_crash() -> None:
    be = make()
    table, index = tensor(np.ones((3, 4), np.float32), be), tensor(np.array([0, 7, -1], np.int32), be)
    assert np.isnan(ops.embedding(table, index).numpy()).any(1).tolist() == [False, True, True]
    assert np.isnan(ops.cross_entropy(table, index).item())
