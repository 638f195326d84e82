"""Which documents a search looks at."""

from dataclasses import dataclass

from store.documents import LABELS, storable
from store.errors import StoreMisuse

__all__ = ["Filter", "at_most"]


@dataclass(frozen=True)
class Filter:
    """All that is given must hold; an empty one takes every document of the collection.

    `labels`: one of these. `source`: exactly this one. `folder`: in it at any depth, so sources that start with it and
    a slash (or with it, where it ends in one of its own). `glob`: as SQLite matches the whole source, where `*` and `?`
    stand for slashes, too, and case counts. `since` and `until` (not included): unix seconds; what has no date is in
    no span of time. Raises StoreMisuse for a label that does not exist.
    """

    labels: frozenset[str] | None = None
    source: str | None = None
    folder: str | None = None
    glob: str | None = None
    since: int | None = None
    until: int | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and not self.labels <= set(LABELS):
            raise StoreMisuse(f"a label is one of {', '.join(LABELS)}")

    def condition(self) -> tuple[str, list[str | int]]:
        """SQL over a row of `documents`, with parameters."""
        parts: list[str] = []
        values: list[str | int] = []
        if self.labels is not None:
            parts.append(f"label IN ({', '.join('?' * len(self.labels))})")
            values += sorted(self.labels)
        if self.source is not None:
            parts.append("source = ?")
            values.append(storable(self.source))
        if self.folder is not None:
            start = storable(self.folder)
            start = start if start.endswith(("/", "\\")) else start + "/"
            parts.append("source >= ? AND source < ?")  # the slash and what comes after it, which an index finds
            values += [start, start[:-1] + chr(ord(start[-1]) + 1)]
        if self.glob is not None:
            parts.append("source GLOB ?")
            values.append(storable(self.glob))
        if self.since is not None:
            parts.append("dated_at >= ?")
            values.append(self.since)
        if self.until is not None:
            parts.append("dated_at < ?")
            values.append(self.until)
        return " AND ".join(parts) or "1", values


def at_most(label: str) -> frozenset[str]:
    """The labels that are no stricter. Raises StoreMisuse if there is no such label."""
    if label not in LABELS:
        raise StoreMisuse(f"a label is one of {', '.join(LABELS)}")
    return frozenset(LABELS[: LABELS.index(label) + 1])
