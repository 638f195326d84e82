"""Looks for bytes in the memory of another process of ours (Linux), as somebody would who has seized the machine."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path

BLOCK = 1 << 20


def found_in(pid: int, needles: Collection[bytes]) -> set[bytes]:
    """Which of the needles lie anywhere in what the process has mapped. Raises OSError if it may not be read."""
    pattern = re.compile(b"|".join(re.escape(one) for one in sorted(needles, key=len, reverse=True)))
    overlap = max(map(len, needles)) - 1
    found: set[bytes] = set()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for start, end in _readable(pid):
            tail = b""
            for at in range(start, end, BLOCK):
                try:
                    memory.seek(at)
                    block = tail + memory.read(min(BLOCK, end - at))
                except (OSError, OverflowError):  # unmapped meanwhile, or the kernel's own page
                    break
                found.update(match[0] for match in pattern.finditer(block))
                tail = block[-overlap:]
    return found


def written_in(pid: int) -> bytes:
    """All that the process may have written: its writable memory without what is zero, in one piece.

    For many needles, that each take a moment. Raises OSError if it may not be read.
    """
    parts: list[bytes] = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for start, end in _readable(pid, "rw"):
            for at in range(start, end, BLOCK):
                try:
                    memory.seek(at)
                    block = memory.read(min(BLOCK, end - at))
                except (OSError, OverflowError):
                    break
                parts.append(block if block.count(0) < len(block) else b"\0")
    return b"".join(parts)


def _readable(pid: int, wanted: str = "r") -> Iterator[tuple[int, int]]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, rights, *_ = line.split()
        if rights.startswith(wanted) and not line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
            start, _, end = span.partition("-")
            yield int(start, 16), int(end, 16)
