"""Which files below a folder are documents: by kind, by `.causewayignore`, never through a link.

`.causewayignore` goes by gitignore's rules for its folder and all below: a line a pattern, `#` a comment, `!` takes
back, a trailing `/` means folders alone, a `/` elsewhere binds the pattern to the file's folder, `**` crosses folders.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from edge_client.documents import KINDS

__all__ = ["IGNORE_FILE", "find_files", "whereabouts"]

IGNORE_FILE: Final = ".causewayignore"
_SPELT_OUT: Final = re.compile(r"\\ud[c-f][0-9a-f]{2}")  # a name that is not UTF-8, as the store keeps it
_IGNORE_MAX: Final = 1 << 16  # bytes of such a file
# What programs leave beside what people write. A `!` line brings any of it back; hidden files it does not.
_DEFAULTS: Final = (
    "node_modules/", "__pycache__/", "venv/", "site-packages/", "*.egg-info/", "*.min.js", "*.min.css",
    "package-lock.json", "*-lock.yaml", "~$*", "*~",
)


@dataclass(frozen=True)
class _Rule:
    base: Path
    pattern: re.Pattern[str]
    folders_only: bool
    ignores: bool


def find_files(paths: Iterable[Path], skip: Callable[[Path], None] = lambda path: None) -> Iterator[Path]:
    """The given files, and below given folders those of a known kind. In order of their names, folder by folder.

    Hidden and ignored files are left out; `skip` hears of files of another kind and of links, which are not followed.
    A file named by the user is passed on whatever its kind, so that it is reported rather than ignored. So is a folder
    that cannot be read.
    """
    for path in paths:
        if is_folder(path):
            yield from _below(path, skip)
        else:
            yield path


def is_folder(path: Path) -> bool:
    """Not if it cannot be had: a name that is too long, say, of which whoever reads it tells."""
    try:
        return path.is_dir()
    except OSError:
        return False


def whereabouts(source: str) -> Literal["there", "gone", "unclear"]:
    """Of the file of that absolute path; other sources are unclear.

    A file is gone where the nearest folder above it that is left holds anything else. One that is empty may be a medium
    that is not mounted, and one that cannot be read tells nothing: that is unclear, too.
    """
    path = Path(source)
    if not path.is_absolute() or _SPELT_OUT.search(source):
        return "unclear"
    try:
        path.lstat()
        return "there"
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError:
        return "unclear"
    for parent in path.parents:
        try:
            with os.scandir(parent) as entries:
                return "gone" if any(entries) else "unclear"
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            break
    return "unclear"


def _below(root: Path, skip: Callable[[Path], None]) -> Iterator[Path]:
    rules = _rules(root, _DEFAULTS)
    waiting = [(root, rules)]
    while waiting:
        folder, rules = waiting.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            rules = [*rules, *_rules(folder, _lines(folder / IGNORE_FILE))]
        except OSError:
            yield folder
            continue
        inner: list[tuple[Path, list[_Rule]]] = []
        for entry in entries:
            path = folder / entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            if entry.name.startswith(".") or _ignored(path, rules, is_folder=is_folder):
                continue
            if is_folder:
                inner.append((path, rules))
            elif entry.is_file(follow_symlinks=False) and path.suffix.lower() in KINDS:
                yield path
            else:
                skip(path)
        waiting += inner[::-1]


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open("rb") as stream:
        return stream.read(_IGNORE_MAX).decode("utf-8", "replace").splitlines()


def _rules(base: Path, lines: Iterable[str]) -> list[_Rule]:
    rules = []
    for line in lines:
        text = line.rstrip()
        if not text or text.startswith("#"):
            continue
        ignores = not text.startswith("!")
        text = text.lstrip("!") if not ignores else text
        folders_only, text = text.endswith("/"), text.rstrip("/")
        anchored, text = "/" in text, text.lstrip("/")
        if text:
            pattern = _translated(text if anchored else f"**/{text}")
            rules.append(_Rule(base, re.compile(pattern), folders_only, ignores))
    return rules


def _translated(pattern: str) -> str:
    parts = []
    for part in re.findall(r"\*\*/|/\*\*$|\*+|\?|\\.|[^*?\\/]+|.", pattern):
        if part == "**/":
            parts.append("(?:.*/)?")
        elif part == "/**":
            parts.append("/.*")
        elif part[0] == "*":
            parts.append("[^/]*")
        else:
            parts.append("[^/]" if part == "?" else re.escape(part.removeprefix("\\")))
    return "".join(parts)


def _ignored(path: Path, rules: Sequence[_Rule], *, is_folder: bool) -> bool:
    """The last rule that fits decides."""
    for rule in reversed(rules):
        if rule.folders_only and not is_folder:
            continue
        if rule.pattern.fullmatch(path.relative_to(rule.base).as_posix()):
            return rule.ignores
    return False
