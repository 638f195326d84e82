"""The real Bluetooth stack without a radio: `scripts/test-bluez [--accel kvm|tcg] [STEP...]`.

Boots Debian's kernel under QEMU with BlueZ, D-Bus and two virtual controllers (`hci_vhci`, driven by bumble), and runs
tests/bluez in it: our edge (bleak) against our hop (BlueZ's peripheral). Software emulation needs nothing of this
machine; KVM is faster where it works, which a device file does not prove. Without STEP every step runs, with `ci` those
that continuous integration runs; some run when they are named alone (tests/bluez/run.py). A table ends the output.

Exit codes: 0 every step passed, 1 one did not, 2 something must be installed by hand first, 130 stopped.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from scripts import bluez_image
from scripts.setup import SetupFailed, install_packages

LIMIT_S: Final = 1050  # of one run in software emulation on a busy machine; a third of it or less on one at rest
BOOT_LIMIT_S: Final = 90
MEMORY_MB: Final = 1536
_KVM_CPU: Final = "host,-arch-capabilities"  # a machine that is virtual itself may refuse that one
_DONE: Final = re.compile(r"guest: exit (\d+)")

began = time.monotonic()


def say(text: str) -> None:
    print(f"test-bluez: {time.monotonic() - began:6.1f} s  {text}", flush=True)


def check_tools() -> str:
    """Installs what is missing when run as root; what is still to be installed by hand, "" for nothing."""
    def missing() -> list[str]:
        return sorted({package for tool, package in bluez_image.TOOLS.items() if shutil.which(tool) is None})

    if (names := missing()) and os.geteuid() == 0 and shutil.which("apt-get"):
        say(f"installing Debian packages: {' '.join(names)}")
        install_packages(names, needed=False)
    return " ".join(missing())


def boot(folder: Path, initrd: Path, accel: str, limit_s: float) -> int | None:
    """Runs the machine to its end, its output shown as it comes: what the steps ended with, None if they did not."""
    command = [
        "qemu-system-x86_64", "-M", "q35", "-accel", accel, "-cpu", _KVM_CPU if accel == "kvm" else "max", "-smp", "2",
        "-m", str(MEMORY_MB), "-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio",
        "-kernel", str(folder / "vmlinuz"), "-initrd", str(initrd),
        "-append", "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off random.trust_cpu=on",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", start_new_session=True,
    )  # fmt: skip
    up = threading.Event()

    def end() -> None:
        process.kill()

    timers = [threading.Timer(limit_s, end), threading.Timer(BOOT_LIMIT_S, lambda: up.is_set() or end())]
    for timer in timers:
        timer.start()
    code = None
    try:
        assert process.stdout is not None
        for line in process.stdout:
            text = line.rstrip()
            if "guest: kernel up" in text:
                up.set()
            if done := _DONE.search(text):
                code = int(done[1])
            elif text:
                print(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1bc", "", text), flush=True)
        process.wait()
    finally:
        for timer in timers:
            timer.cancel()
        process.kill()
        process.wait()
    if not up.is_set():
        say(f"the machine did not boot with {accel}")
    return code


def interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/test-bluez", description="Tests against the real Bluetooth stack.")
    parser.add_argument("--accel", choices=("kvm", "tcg"), default="tcg", help="default: tcg, software emulation")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds that the machine may run")
    parser.add_argument("step", nargs="*", help="steps to run; default: all")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupted)
    if names := check_tools():
        print(f"please install first: {names}   (Debian: sudo apt-get install {names})", file=sys.stderr)
        return 2
    try:
        folder = bluez_image.image(say)
        with tempfile.TemporaryDirectory(prefix="causeway-bluez-") as scratch:
            initrd = Path(scratch) / "initrd"
            bluez_image.with_code(folder, initrd, arguments.step)
            say(f"starting the machine with {arguments.accel}")
            code = boot(folder, initrd, arguments.accel, arguments.limit)
    except (bluez_image.NoImage, SetupFailed) as error:
        print(f"test-bluez: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("stopped")
        return 130
    say("passed" if code == 0 else "failed" if code is not None else "the machine was ended before its steps were")
    return 0 if code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
