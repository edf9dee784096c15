"""Which device the tests run on.

HELIOS_TEST_BACKEND names it: "vulkan" (also when unset), "vulkan:<index or part of a device's name>", "simt" (the same
with the kernels for GPUs, whatever the device is), or "cpu_ref".
Where the device is missing, tests that need it are skipped with the reason; if it was named, or under CI (variable CI
set), they fail.

Whole folders run in several processes; `-n 0` has them run in one.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

# One for each of pytest's processes, or they wait for each other; read when numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest

from helios.backends import get_backend
from helios.backends.backend import Backend
from helios.errors import UserError

# A background job of a shell ignores SIGINT and nohup SIGHUP, and so would the processes that tests send them to.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

# Workgroups along one axis of a grid: few, for lavapipe takes minutes for the kernels for GPUs in more than it has.
SIMT_GROUPS = 1000


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """No test crashes the machine, so none has to wait until the disk has what was written; nor have its processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        patch.setenv("PYTHONPATH", str(Path(__file__).parent / "unsynced"), prepend=os.pathsep)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs on the device under test: `-m device` chooses it."""
    for item in items:
        given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if "backend" in item.fixturenames or "device" in (given.get("each_backend"), given.get("each_mixed")):
            item.add_marker("device")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes the tests are spread over.

    It is the number of cores, but at most four, since each takes up to 2 GB; for single files and chosen tests it is 0,
    which is this process alone, since starting others takes seconds.
    """
    few = config.option.keyword or not any(Path(arg).is_dir() for arg in config.args)
    return 0 if few else min(4, os.cpu_count() or 1)


def device_under_test(precision: str = "f32") -> Backend:
    name, _, device = os.environ.get("HELIOS_TEST_BACKEND", "vulkan").partition(":")
    try:
        if name == "simt":
            from helios.backends.vulkan.backend import VulkanBackend

            be = VulkanBackend(device or None, profile=name, precision=precision)
            be.profile = be.device.profile = replace(be.profile, max_groups=SIMT_GROUPS)
            return be
        return get_backend(name, device or None, precision)
    except (ImportError, OSError, UserError) as error:  # no module or no Vulkan loader, no usable device
        reason = f"no backend {name}: {type(error).__name__}: {error}"
        if os.environ.get("CI") or "HELIOS_TEST_BACKEND" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def backend() -> Backend:
    """The device under test."""
    return device_under_test()


@pytest.fixture(scope="session")
def cpu_ref() -> Backend:
    return get_backend("cpu_ref")


@pytest.fixture(scope="session", params=["cpu_ref", "device"])
def each_backend(request: pytest.FixtureRequest) -> Backend:
    """cpu_ref, then the device under test."""
    return request.getfixturevalue("cpu_ref" if request.param == "cpu_ref" else "backend")


@pytest.fixture(scope="session", params=["cpu_ref", "device"])
def each_mixed(request: pytest.FixtureRequest) -> Backend:
    """The same in mixed precision."""
    return get_backend("cpu_ref", precision="mixed") if request.param == "cpu_ref" else device_under_test("mixed")
