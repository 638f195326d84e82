"""Which documents a search looks at."""

import json
from dataclasses import dataclass

from store.documents import LABELS, check_date, storable
from store.errors import StoreMisuse

__all__ = ["Filter", "at_most"]


@dataclass(frozen=True)
class Filter:
    """All that is given must hold; an empty one takes every document of the collection.

    `labels`: one of these. `source`: exactly this one. `folder`: in it at any depth, so sources that start with it and
    a slash (or with it, where it ends in one of its own). `glob`: as SQLite matches the whole source, where `*` and `?`
    stand for slashes, too, and case counts. `since` and `until` (not included): unix seconds; what has no date is in
    no span of time. Raises StoreMisuse for a label that does not exist, and for seconds of more than 64 bits.
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
        for moment in (self.since, self.until):
            check_date(moment)

    def condition(self) -> tuple[str, list[str | int]]:
        """SQL over a row of `documents`, with parameters."""
        folder = self.folder if self.folder is None or self.folder.endswith(("/", "\\")) else self.folder + "/"
        labels = None if self.labels is None else json.dumps(sorted(self.labels))
        parts: list[tuple[str, str | int | None]] = [
            ("label IN (SELECT value FROM json_each(?))", labels),
            ("source = ?", self.source),
            # The slash, and what comes after it: an index finds what is between.
            ("source >= ?", folder), ("source < ?", folder and folder[:-1] + chr(ord(folder[-1]) + 1)),
            ("source GLOB ?", self.glob), ("dated_at >= ?", self.since), ("dated_at < ?", self.until),
        ]
        given = [(sql, value) for sql, value in parts if value is not None]
        values = [storable(value) if isinstance(value, str) else value for _, value in given]
        return " AND ".join(sql for sql, _ in given) or "1", values


def at_most(label: str) -> frozenset[str]:
    """The labels that are no stricter. Raises StoreMisuse if there is no such label."""
    if label not in LABELS:
        raise StoreMisuse(f"a label is one of {', '.join(LABELS)}")
    return frozenset(LABELS[: LABELS.index(label) + 1])
