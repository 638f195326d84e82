"""Which documents a question is asked of, as people say it: a collection, labels, a file or folder, a span of time."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from typing import Final

from edge_client.errors import BadUse
from store.documents import Documents
from store.filters import Filter

__all__ = ["Scope", "moment", "narrowed"]

_AGO_S: Final = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


@dataclass(frozen=True)
class Scope:
    """A collection, and what of it."""

    collection: str = "default"
    filter: Filter = field(default_factory=Filter)


async def narrowed(
    documents: Documents, *, collection: str = "default", labels: Sequence[str] = (), file: str | None = None,
    since: str | None = None, until: str | None = None, now: float,
) -> Scope:
    """The scope of these words; `now` in unix seconds. `since` and `until` are as `moment` takes them.

    `file` is a document as the list names it, a file, a folder, or a pattern with `*`, `?` and `[a-c]`: for names if it
    has no slash, else for whole paths from here on. Raises BadUse for a date that is none, and where the collection has
    no such file: a mistyped name would else be silence.
    """
    chosen = Filter(
        labels=frozenset(labels) or None, since=None if since is None else moment(since, now),
        until=None if until is None else moment(until, now, end=True),
    )
    if file is None:
        return Scope(collection, chosen)
    path = os.path.realpath(file)  # noqa: ASYNC240  (one path of this machine)
    within = [Filter(source=file), Filter(source=path), Filter(folder=path), Filter(folder=file)]
    if re.search(r"[*?[]", file):
        within.append(Filter(glob=_pattern(file)))
    for one in within:
        if await documents.has(collection, one):
            return Scope(collection, replace(chosen, source=one.source, folder=one.folder, glob=one.glob))
    raise BadUse(
        f"the collection {collection} has no document of {file}", hint="`edge documents` lists them with their files"
    )


def moment(text: str, now: float, *, end: bool = False) -> int:
    """Unix seconds of an ISO date or time (the local one without an offset), or of so long ago: 12h, 7d, 3w.

    A date is the beginning of that day, with `end` that of the next one. Raises BadUse.
    """
    if ago := re.fullmatch(r"([0-9]{1,4})([hdw])", text):
        return int(now - int(ago[1]) * _AGO_S[ago[2]])
    try:
        try:
            day = date.fromisoformat(text) + timedelta(days=end)
            return int(datetime.combine(day, time_of_day()).timestamp())
        except ValueError:
            return int(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError, OSError):
        hint = "2026-01-31, 2026-01-31T08:30, or so long ago: 12h, 7d, 3w"
        raise BadUse(f"{text} is no date or time", hint=hint) from None


def _pattern(file: str) -> str:
    """For the whole source. What is above here is no pattern."""
    if "/" not in file:
        return f"*/{file}"
    if file.startswith(("/", "*")):
        return file
    here = re.sub(r"[*?[]", lambda found: f"[{found[0]}]", os.path.realpath("."))
    return os.path.normpath(f"{here}/{file}")
