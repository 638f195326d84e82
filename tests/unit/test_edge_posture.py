"""What `edge status` says of the disk: from /sys as the kernel writes it, or a command's words; else unknown."""

import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from edge_client.posture import Posture, posture, silent, told, tpm
from transport.messages import decode, encode


class Machine:
    """A /sys and /proc with the home's device in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.home.mkdir()
        number = self.home.stat().st_dev
        self.number = f"{os.major(number)}:{os.minor(number)}"
        (root / "sys/dev/block").mkdir(parents=True)
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/mountinfo").write_text("22 27 0:21 / /proc rw - proc proc rw\n")

    def device(self, name: str, uuid: str | None = None, on: Sequence[str] = ()) -> Path:
        path = self.root / "sys/devices" / name
        (path / "slaves").mkdir(parents=True)
        if uuid is not None:
            (path / "dm").mkdir()
            (path / "dm/uuid").write_text(uuid + "\n")
        for below in on:
            (path / "slaves" / below).symlink_to(self.root / "sys/devices" / below)
        return path

    def home_on(self, name: str) -> None:
        (self.root / "sys/dev/block" / self.number).symlink_to(self.root / "sys/devices" / name)

    def look(self, home: Path | None = None) -> Posture:
        return posture(home or self.home, platform="linux", root=self.root)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


LUKS = "CRYPT-LUKS2-0123456789abcdef-luks"


def test_luks_below_the_home(machine: Machine) -> None:
    machine.device("dm-0", LUKS)
    machine.home_on("dm-0")
    assert machine.look() == Posture("encrypted", "LUKS")
    assert machine.look(machine.home / "not" / "yet").state == "encrypted"


def test_a_plain_partition(machine: Machine) -> None:
    machine.device("sda1")
    machine.home_on("sda1")
    assert machine.look().state == "not encrypted"


def test_volumes_are_as_good_as_all_that_they_lie_on(machine: Machine) -> None:
    machine.device("dm-0", LUKS)
    machine.device("sda2")
    machine.device("dm-1", "LVM-abc", on=["dm-0"])
    machine.device("dm-2", "LVM-def", on=["dm-0", "sda2"])
    machine.home_on("dm-1")
    assert machine.look().state == "encrypted"
    (machine.root / "sys/dev/block" / machine.number).unlink()
    machine.home_on("dm-2")
    assert machine.look().state == "not encrypted", "half of it is in the clear"


def test_other_device_mapper_targets_are_no_encryption(machine: Machine) -> None:
    machine.device("dm-0", "LVM-CRYPT-LUKS-in-a-name")
    machine.home_on("dm-0")
    assert machine.look().state == "not encrypted"


def test_a_device_below_itself_ends(machine: Machine) -> None:
    machine.device("dm-0", "LVM-a", on=["dm-0"])
    machine.home_on("dm-0")
    assert machine.look().state == "not encrypted"


def test_what_the_kernel_does_not_show_is_unknown(machine: Machine) -> None:
    assert machine.look().state == "unknown"


def test_a_file_system_without_a_device_is_unknown(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "major", lambda number: 0)
    monkeypatch.setattr(os, "minor", lambda number: 21)
    assert machine.look() == Posture("unknown", "the home is on no block device of its own")


def test_a_file_system_with_a_number_of_its_own_is_followed_to_its_device(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = machine.home.stat().st_dev
    monkeypatch.setattr(os, "major", lambda number: 0 if number == ours else 253)
    monkeypatch.setattr(os, "minor", lambda number: 29 if number == ours else 7)
    (machine.root / "dev").mkdir()
    (machine.root / "dev/luks").touch()
    machine.device("dm-7", LUKS)
    (machine.root / "sys/dev/block/253:7").symlink_to(machine.root / "sys/devices/dm-7")
    (machine.root / "proc/self/mountinfo").write_text(
        "22 27 0:21 / /proc rw - proc proc rw\n30 1 0:29 /@ / rw shared:1 master:2 - btrfs /dev/luks rw\n"
    )
    assert machine.look() == Posture("encrypted", "LUKS")


@pytest.mark.parametrize(("platform", "said", "state"), [
    ("darwin", "FileVault is On.\n", "encrypted"),
    ("darwin", "FileVault is Off.\n", "not encrypted"),
    ("darwin", None, "unknown"),
    ("win32", "    Protection Status:    Protection On\n", "encrypted"),
    ("win32", "    Protection Status:    Protection Off\n", "not encrypted"),
    ("win32", "    Schutzstatus:    Der Schutz ist aktiviert\n", "unknown"),
    ("win32", None, "unknown"),
    ("plan9", "anything", "unknown"),
])
def test_other_systems_are_asked_in_their_words(tmp_path: Path, platform: str, said: str | None, state: str) -> None:
    assert posture(tmp_path, platform=platform, run=lambda command: said).state == state


def test_a_tpm_is_one_that_the_kernel_has_a_device_for(tmp_path: Path) -> None:
    assert tpm(platform="linux", root=tmp_path) == "absent"
    (tmp_path / "sys/class/tpmrm").mkdir(parents=True)
    assert tpm(platform="linux", root=tmp_path) == "absent"
    (tmp_path / "sys/class/tpmrm/tpmrm0").mkdir()
    assert tpm(platform="linux", root=tmp_path) == "present"
    assert tpm(platform="darwin", root=tmp_path) == "unknown"


async def test_what_the_gateway_is_told_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []

    def look(home: Path) -> Posture:
        looked.append(home)
        return Posture("encrypted", "in a test")

    monkeypatch.setattr("edge_client.posture.posture", look)
    tell = told(tmp_path)
    first = await tell()
    assert first is not None and first.disk == "encrypted" and first is await tell()
    assert looked == [tmp_path]
    assert await silent() is None
    monkeypatch.setattr("edge_client.posture.version", lambda name: "1.2")
    odd = await told(tmp_path)()
    assert odd is not None and odd.version == "", "what the gateway would not take is not told"
    assert decode(encode(first)) == first, "the gateway takes it"


async def test_a_program_that_was_never_installed_tells_no_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("edge_client.posture.version", missing)
    said = await told(tmp_path)()
    assert said is not None and said.version == ""
