"""Prompts as people type them: a line, lines joined by a backslash, a block between two lines of three quotes, a paste.

What was typed is held in memory, and written nowhere: the line editor has no file.
"""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator

__all__ = ["prompts", "reader"]

_BLOCK = '"""'


def prompts(read: Callable[[str], str]) -> Iterator[str]:
    """What is typed, one prompt after the other, never empty. `read` is given what to show, and raises EOFError.

    A KeyboardInterrupt that `read` raises drops what was begun, and an empty text is given in its place.
    """
    while True:
        lines: list[str] = []
        try:
            lines.append(read("> "))
            if lines[0].lstrip().startswith(_BLOCK):
                lines[0] = lines[0].lstrip().removeprefix(_BLOCK)
                while not lines[-1].rstrip().endswith(_BLOCK):
                    lines.append(read('" '))
                lines[-1] = lines[-1].rstrip().removesuffix(_BLOCK)
            else:
                while lines[-1].endswith("\\"):
                    lines[-1] = lines[-1][:-1]
                    lines.append(read(". "))
        except EOFError:
            if not lines:
                return
        except KeyboardInterrupt:
            yield ""
            continue
        if text := "\n".join(lines).strip():
            yield text


def reader(past: Iterable[str] = ()) -> Callable[[str], str]:
    """Reads lines from the terminal, with editing, and `past` to go back to; or from a pipe, as they are."""
    if not sys.stdin.isatty():
        return _piped
    with contextlib.suppress(ImportError):  # then the terminal's own editing has to do
        import readline

        readline.parse_and_bind("set enable-bracketed-paste on")  # Python switches it off: a paste is one text
        for text in past:
            readline.add_history(text)
    return _typed


def _typed(shown: str) -> str:
    # A terminal may hand over bytes that are no text; they would break where they are sent.
    return input(shown).encode("utf-8", "replace").decode()


def _piped(shown: str) -> str:
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    return line.decode("utf-8", "replace").rstrip("\r\n")
