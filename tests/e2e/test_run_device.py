"""The Vulkan device that the `run` script finds or installs."""

import os

import pytest

from .checkout import Checkout, program

DEB822 = """
# The image's own note, not a field
Types: deb deb-src
# another note
URIs: mirror+file:/etc/mirrors.list
Suites: bookworm
 bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/a.gpg

Types: deb
URIs: mirror+file:/etc/security.list
Suites: bookworm-security
Components: main
"""
DEB822_BACKPORTS = """helios-backports.sources
Types: deb
URIs: mirror+file:/etc/mirrors.list
Suites: bookworm-backports
Components: main contrib
Signed-By: /usr/share/keyrings/a.gpg
"""
ONE_LINE = """# deb file:/old bookworm main
deb cdrom:[Debian 12 _Bookworm_]/ bookworm main
deb-src file:/srv/debian bookworm main
deb [signed-by=/a.gpg arch=amd64] file:/srv/tools bookworm stable
deb [signed-by=/a.gpg arch=amd64] file:/srv/debian bookworm main contrib
deb file:/srv/security bookworm-security main
"""
ONE_LINE_BACKPORTS = """helios-backports.list
deb [signed-by=/a.gpg arch=amd64] file:/srv/debian bookworm-backports main contrib
"""


@pytest.mark.parametrize(
    ("deb822", "one_line", "expected"),
    [
        (DEB822, None, DEB822_BACKPORTS),
        (DEB822, "# moved to debian.sources\n", DEB822_BACKPORTS),
        ("Enabled: no\n" + DEB822.lstrip(), ONE_LINE, ONE_LINE_BACKPORTS),
        (None, ONE_LINE, ONE_LINE_BACKPORTS),
        (None, "deb file:/srv/debian trixie main\n", None),
        (None, None, None),
    ],
    ids=["deb822", "deb822 and a note", "deb822 switched off", "one-line", "another release", "none"],
)
def test_backports_source_is_the_machines_own(
    checkout: Checkout, deb822: str | None, one_line: str | None, expected: str | None
) -> None:
    if deb822 is not None:
        (checkout.apt / "sources.list.d" / "debian.sources").write_text(deb822)
    if one_line is not None:
        (checkout.apt / "sources.list").write_text(one_line)
    result = checkout.bash("backports_source bookworm")
    assert (result.returncode == 0) == (expected is not None)
    assert result.stdout == (expected or "")
    assert not result.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sources.list", "deb file:/srv/debian bookworm-backports main\n"),
        ("sources.list.d/any.list", "deb file:/srv/debian bookworm-backports main\n"),
        ("sources.list.d/any.sources", "Suites: bookworm bookworm-backports\n"),
    ],
    ids=str,
)
def test_backports_are_added_only_once(checkout: Checkout, name: str, text: str) -> None:
    (checkout.apt / "sources.list.d" / "debian.sources").write_text(DEB822)
    (checkout.apt / name).write_text(text)
    assert checkout.bash("add_backports bookworm").returncode == 0
    assert not list(checkout.apt.glob("sources.list.d/helios-*"))


def test_present_device_is_kept(checkout: Checkout) -> None:
    program(checkout.run("train"))
    assert not checkout.calls("apt-get")


def test_missing_device_is_installed_from_backports(checkout: Checkout) -> None:
    (checkout.apt / "sources.list.d" / "debian.sources").write_text(DEB822)
    checkout.device.unlink()
    result = checkout.run("train", PROVIDES="mesa-vulkan-drivers", REFUSED="update")  # a dead third-party source
    assert "--backend" not in program(result)
    update, install = checkout.calls("apt-get")
    assert "update" in update
    assert install.endswith("install -t bookworm-backports libvulkan1 mesa-vulkan-drivers")
    written = checkout.apt / "sources.list.d" / "helios-backports.sources"
    assert written.read_text() == DEB822_BACKPORTS.partition("\n")[2]


def test_mirror_without_backports_leaves_no_broken_source(checkout: Checkout) -> None:
    (checkout.apt / "sources.list").write_text(ONE_LINE)
    checkout.device.unlink()
    result = checkout.run("train", REFUSED="-t bookworm-backports")
    assert program(result)[-2:] == ["--backend", "cpu_ref"]
    assert not list(checkout.apt.glob("sources.list.d/helios-*"))


def test_debian_12_without_a_source_to_derive_from(checkout: Checkout) -> None:
    checkout.device.unlink()
    result = checkout.run("train")
    assert program(result)[-2:] == ["--backend", "cpu_ref"]
    assert "Debian 12's own Mesa is too old" in result.stderr
    assert not checkout.calls("apt-get")


def test_other_systems_serve_their_own_mesa(checkout: Checkout) -> None:
    checkout.device.unlink()
    result = checkout.bash(
        'os_release() { echo "ubuntu noble"; }; main "$@"', "train", PROVIDES="mesa-vulkan-drivers"
    )
    assert "--backend" not in program(result)
    assert checkout.calls("apt-get")[-1].endswith("install libvulkan1 mesa-vulkan-drivers")


def test_nvidia_gpu_needs_only_the_loader(checkout: Checkout) -> None:
    checkout.device.unlink()
    program(checkout.run("train", NVIDIA="yes", PROVIDES="libvulkan1"))
    assert [call.rpartition("install ")[2] for call in checkout.calls("apt-get") if "update" not in call] == [
        "libvulkan1"
    ]


def test_without_a_device_training_takes_the_reference_backend(checkout: Checkout) -> None:
    (checkout.apt / "sources.list").write_text(ONE_LINE)
    checkout.device.unlink()
    result = checkout.run("train", "--steps", "1", REFUSED="install")
    assert program(result)[2:] == ["--preset", "quickstart", "--backend", "cpu_ref", "--steps", "1"]
    assert "no Vulkan device" in result.stderr
    assert checkout.calls("apt-get")

    again = checkout.run("train", "--steps", "1", REFUSED="install")
    assert program(again) == program(result)
    assert not checkout.calls("apt-get")  # not tried each time

    assert checkout.run("setup", REFUSED="install").returncode == 1
    assert checkout.calls("apt-get")  # but when asked to


@pytest.mark.parametrize("chosen", ["--backend cpu_ref", "--backend=cpu_ref", "--set backend=cpu_ref"])
def test_reference_backend_needs_no_device(checkout: Checkout, chosen: str) -> None:
    checkout.device.unlink()
    assert program(checkout.run("train", *chosen.split()))[2:] == ["--preset", "quickstart", *chosen.split()]
    assert not checkout.calls("apt-get")


@pytest.mark.parametrize("chosen", ["--backend vulkan", "--backend=vulkan", "--set backend=vulkan"])
def test_chosen_backend_is_not_replaced(checkout: Checkout, chosen: str) -> None:
    (checkout.apt / "sources.list").write_text(ONE_LINE)
    checkout.device.unlink()
    result = checkout.run("train", *chosen.split(), REFUSED="install")
    assert program(result)[2:] == ["--preset", "quickstart", *chosen.split()]
    assert checkout.calls("apt-get")


def test_tests_get_the_validation_layers_and_a_browser(checkout: Checkout) -> None:
    program(checkout.run("test"))
    assert [call.rpartition("install ")[2] for call in checkout.calls("apt-get") if "update" not in call] == [
        "vulkan-validationlayers", "chromium"
    ]
    program(checkout.run("test", LAYERS="yes", CHROMIUM="yes"))
    assert not checkout.calls("apt-get")
    result = checkout.run("test", LAYERS="yes", REFUSED="chromium")
    assert program(result) and "tests of the board's page are skipped" in result.stderr


def test_nothing_is_installed_where_root_cannot_be_had(checkout: Checkout) -> None:
    checkout.device.unlink()
    (checkout.bin / "sudo").write_text("#!/bin/bash\nexit 1\n")
    no_apt_for_root = 'command() { [[ $* != "-v apt-get" ]] && builtin command "$@"; }' if os.geteuid() == 0 else ":"
    result = checkout.bash(f'{no_apt_for_root}; main "$@"', "train")
    assert program(result)[-2:] == ["--backend", "cpu_ref"]
    assert "have someone install: libvulkan1 mesa-vulkan-drivers" in result.stderr
    assert not checkout.calls("apt-get")
