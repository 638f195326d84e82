"""The virtual machine's disk: Debian's kernel, BlueZ, D-Bus, Python and this project's packages, in one initramfs.

Packages come by apt from wherever this machine's own apt has them from, resolved as if nothing were installed, and are
unpacked without being installed: that needs no root. The result is kept in this user's cache and made anew when the
recipe (this file), the lock or the Python version changes, which takes half a minute.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGES: Final = ("bluez", "dbus", "python3", "libstdc++6", "kmod", "busybox-static")
CODE: Final = ("transport", "store", "edge_client", "relay", "tests", "scripts", "benchmarks")
EXTRAS: Final = ("edge", "hop", "gateway")
BESIDE: Final = ("bluez-peripheral", "pytest", "pytest-asyncio", "hypothesis")  # what is measured beside, and with
LEFT_OUT: Final = {"llama-cpp-python", "gguf", "pypdf"}  # no link needs them
TOOLS: Final = {  # what has to be on this machine, and the Debian package that brings it
    "qemu-system-x86_64": "qemu-system-x86", "cpio": "cpio", "apt-get": "apt", "dpkg-deb": "dpkg", "tar": "tar",
}
_UNUSED: Final = ("doc", "man", "locale", "perl", "perl5", "info", "zsh", "bash-completion", "lintian")
_NEVER_RUN: Final = "/(test|idlelib|lib2to3|f2py|distutils|lexers|fuzz|vectors)/"
_MODULES: Final = ("drivers/bluetooth/hci_vhci.ko", "net/bluetooth", "net/rfkill", "crypto", "lib", "arch/x86/crypto")
_KERNELS: Final = ("linux-image-6.12-amd64", "linux-image-amd64")  # 6.1.192 ends in a bug of its own (hci_chan_del)

Say = Callable[[str], None]


class NoImage(Exception):
    """The image cannot be made. The message is for a person."""


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "causeway" / "bluez"


def image(say: Say) -> Path:
    """The folder with `vmlinuz` and `rootfs.cpio`, from the cache or made now. Raises NoImage."""
    digest = hashlib.sha256(f"{sys.version_info[:2]}\0".encode())
    for path in (Path(__file__), ROOT / "requirements.lock"):
        digest.update(path.read_bytes() + b"\0")
    folder = cache() / digest.hexdigest()[:16]
    if (folder / "rootfs.cpio").exists():
        return folder
    if platform.machine() != "x86_64" or not shutil.which("apt-get"):
        raise NoImage("the virtual machine is made from Debian's packages for amd64, on Debian for amd64")
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache(), prefix="making-") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        _make(Path(scratch), made, say)
        for old in cache().iterdir():  # a cache holds what is used
            if old != Path(scratch):
                shutil.rmtree(old, ignore_errors=True)
        made.rename(folder)
    return folder


def with_code(folder: Path, initrd: Path, arguments: list[str]) -> None:
    """Writes the image followed by the repository's own code, which the kernel unpacks in this order."""
    with tempfile.TemporaryDirectory(prefix="causeway-code-") as scratch:
        repo = Path(scratch) / "repo"
        for name in CODE:
            shutil.copytree(ROOT / name, repo / name, ignore=shutil.ignore_patterns("corpus", "vectors"))
        (repo / "arguments").write_text(" ".join(arguments))
        _compile([repo], Path(scratch))
        shutil.copy(repo / "tests" / "bluez" / "init", Path(scratch))
        shutil.copy(ROOT / "pyproject.toml", repo)
        shutil.copyfile(folder / "rootfs.cpio", initrd)
        with initrd.open("ab") as out:
            out.write(_archive(Path(scratch)))


def _make(scratch: Path, made: Path, say: Say) -> None:
    say("image 1/4: Debian packages by apt")
    archives = scratch / "archives"
    (archives / "partial").mkdir(parents=True)
    (scratch / "status").touch()
    own = ["-o", f"Dir::Cache::archives={archives}", "-o", "Debug::NoLocking=1"]
    _run(["apt-get", "install", "-qq", "-y", "--download-only", "--no-install-recommends", *own,
          "-o", f"Dir::State::status={scratch / 'status'}", *PACKAGES])
    known = _run(["apt-cache", "pkgnames", "linux-image-"]).decode().split()
    newest = next(name for name in _KERNELS if name in known)
    kernel = _run(["apt-cache", "depends", "--important", newest]).decode().split("Depends:")[1].split()[0]
    _run(["apt-get", "download", "-qq", kernel], cwd=scratch)

    say("image 2/4: unpacking them")
    root = scratch / "root"
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    unused = [f"--exclude=./usr/share/{name}" for name in _UNUSED]
    for package in sorted(archives.glob("*.deb")):
        _unpack(package, root, unused)
    _unpack(next(scratch.glob("linux-image-*.deb")), scratch / "kernel", [])
    version = next((scratch / "kernel" / "lib" / "modules").iterdir())
    shutil.copyfile(scratch / "kernel" / "boot" / f"vmlinuz-{version.name}", made / "vmlinuz")
    modules = root / "usr" / "lib" / "modules" / version.name
    for name in _MODULES:
        for source in (version / "kernel").glob(f"{name}*"):  # some kernels' modules are compressed
            target = modules / source.relative_to(version)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
    for path in version.glob("modules.*"):
        shutil.copyfile(path, modules / path.name)

    say("image 3/4: Python packages of this environment")
    site = root / "opt" / "site"
    for path, name in _files():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, site / name)

    say("image 4/4: putting it together")
    _compile([*(root / "usr" / "lib").glob("python3.*"), site], root)
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nmessagebus:x:100:100::/:/bin/false\n")
    (root / "etc" / "group").write_text("root:x:0:\nmessagebus:x:100:\nbluetooth:x:101:\n")
    for name in ("proc", "sys", "dev", "run", "tmp", "root", "repo", "var/lib/dbus", "var/lib/bluetooth"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (made / "rootfs.cpio").write_bytes(_archive(root))


def _unpack(package: Path, into: Path, options: list[str]) -> None:
    """As dpkg would: a folder of the package that is a link here stays one."""
    into.mkdir(exist_ok=True)
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as source:
        done = subprocess.run(
            ["tar", "-x", "--keep-directory-symlink", "--no-same-owner", *options, "-C", str(into)],
            stdin=source.stdout, check=False,
        )  # fmt: skip
    if done.returncode or source.returncode:
        raise NoImage(f"{package.name} cannot be unpacked")


def _files() -> Iterator[tuple[Path, str]]:
    """Every file, with its name in site-packages, of the packages that links need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (text for extra in EXTRAS for text in project["optional-dependencies"][extra])
    ahead = [*project["dependencies"], *extras, *BESIDE]
    seen = set(LEFT_OUT)
    while ahead:
        wanted = Requirement(ahead.pop())
        name = canonicalize_name(wanted.name)
        if name in seen or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        found = distribution(name)
        ahead += found.requires or []
        for file in found.files or []:
            path = Path(str(file.locate()))
            if not str(file).startswith("..") and path.is_file():
                yield path, str(file)


def _compile(folders: list[Path], root: Path) -> None:
    """Python's own compiling, which takes two seconds here and a minute in the machine. What fails here fails there."""
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash",
         "-s", str(root), "-p", "/", "-x", _NEVER_RUN, *map(str, folders)],
        stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )  # fmt: skip


def _archive(folder: Path) -> bytes:
    """What the kernel unpacks; its size is a multiple of 512, so that another may follow."""
    return _run(["sh", "-c", "find . | cpio -o -H newc --quiet -R 0:0"], cwd=folder)


def _run(command: list[str], *, cwd: Path | None = None) -> bytes:
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise NoImage(f"`{' '.join(command[:3])} ...` failed:\n{done.stderr.decode(errors='replace')[-1500:]}")
    return done.stdout
