"""Whether the disk under the home is encrypted, and whether there is a TPM; what the gateway is told of both.

The store is always encrypted; what other programs keep, swap included, is not.
Nothing here needs a right that an ordinary user has not. What cannot be told so is called unknown, never encrypted.
"""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

from transport import messages

__all__ = ["Posture", "Tell", "posture", "silent", "told", "tpm"]

Tell = Callable[[], Awaitable[messages.Posture | None]]

_PATIENCE_S: Final = 5.0
_DEEPEST: Final = 8  # devices above one another: volumes on volumes on RAID


@dataclass(frozen=True)
class Posture:
    state: Literal["encrypted", "not encrypted", "unknown"]
    how: str  # what was looked at, for a person


def posture(
    home: Path, *, platform: str = sys.platform, root: Path = Path("/"),
    run: Callable[[Sequence[str]], str | None] | None = None,
) -> Posture:
    """`home` need not exist yet. `root` is where /sys and /proc are; `run` gives a command's output, None if it failed.
    """
    run = run or _output
    if platform.startswith("linux"):
        return _linux(home, root)
    if platform == "darwin":
        said = run(["/usr/bin/fdesetup", "status"]) or ""
        return _told(said, r"FileVault is On", r"FileVault is Off", "FileVault")
    if platform == "win32":
        said = run(["manage-bde", "-status", home.drive or "C:"]) or ""
        return _told(said, r"Protection On", r"Protection Off", "BitLocker")
    return Posture("unknown", f"not known for {platform}")


def tpm(*, platform: str = sys.platform, root: Path = Path("/")) -> Literal["present", "absent", "unknown"]:
    """Whether the kernel has a TPM 2.0 for us."""
    if not platform.startswith("linux"):
        return "unknown"
    found = root / "sys/class/tpmrm"
    return "present" if found.is_dir() and any(found.iterdir()) else "absent"


def told(home: Path) -> Tell:
    """What the gateway is told as a session begins. Looked at once, in a thread, since systems are slow to say."""
    found: messages.Posture | None = None

    async def tell() -> messages.Posture:
        nonlocal found
        if found is None:
            disk = await asyncio.to_thread(posture, home)
            found = messages.Posture(disk.state, tpm(), _version())
        return found

    return tell


async def silent() -> None:
    """Tells nothing."""


def _version() -> str:
    """Of this program; "" where it was never installed, as from its sources alone, or is of a form that is not told."""
    try:
        ours = version("causeway")
    except PackageNotFoundError:
        return ""
    return ours if re.match(messages.VERSION, ours) else ""


def _told(said: str, on: str, off: str, name: str) -> Posture:
    if re.search(on, said):
        return Posture("encrypted", name)
    if re.search(off, said):
        return Posture("not encrypted", f"{name} is off")
    return Posture("unknown", f"{name} does not say")


def _linux(home: Path, root: Path) -> Posture:
    while not home.exists() and home != home.parent:
        home = home.parent
    try:
        device = _device(home.stat().st_dev, root)
        if device is None:
            return Posture("unknown", "the home is on no block device of its own")
        if _crypt(device, _DEEPEST):
            return Posture("encrypted", "LUKS")
        return Posture("not encrypted", "no LUKS below it")
    except OSError:
        return Posture("unknown", "the kernel does not show the device")


def _device(number: int, root: Path) -> Path | None:
    """The folder in /sys of a file system's device. Some file systems (btrfs) hide it behind a number of their own."""
    name = f"{os.major(number)}:{os.minor(number)}"
    if os.major(number) == 0:
        source = _mounted(name, root)
        if source is None:
            return None
        behind = (root / source.lstrip("/")).stat().st_rdev
        name = f"{os.major(behind)}:{os.minor(behind)}"
    found = root / "sys/dev/block" / name
    return found.resolve(strict=True)


def _mounted(name: str, root: Path) -> str | None:
    """The device file that a file system is mounted from, by proc(5), mountinfo."""
    for line in (root / "proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fields, source = before.split(), after.split()
        if len(fields) > 2 and fields[2] == name and len(source) > 1 and source[1].startswith("/dev/"):
            return source[1]
    return None


def _crypt(device: Path, depth: int) -> bool:
    """Whether everything written to a device passes through dm-crypt: itself, or all that it lies on."""
    uuid = device / "dm/uuid"
    if uuid.is_file() and uuid.read_text("ascii", "replace").startswith("CRYPT-LUKS"):
        return True
    below = sorted((device / "slaves").iterdir()) if (device / "slaves").is_dir() else []
    return bool(below) and depth > 0 and all(_crypt(one.resolve(strict=True), depth - 1) for one in below)


def _output(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - fixed commands of the system
            list(command), capture_output=True, text=True, errors="replace", timeout=_PATIENCE_S, check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
