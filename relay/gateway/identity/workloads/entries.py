"""Which program on this host has which SPIFFE ID: what the configuration says, and whom it fits. No IO."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, Struct

from transport.identity.svid import SpiffeId


class Workload(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One `[[workload]]`. A caller must fit all that is given: its user, and of the file that it runs path and content.

    `path` is where the file itself is, no symbolic link to it; for a script that is its interpreter. `hint` is told to
    the workload where it has several IDs (Workload API 5.2.1).
    """

    id: Annotated[str, Meta(pattern=r"^/workload/[A-Za-z0-9._/-]{1,200}\Z")]
    uid: Annotated[int, Meta(ge=0, le=4_294_967_294)]
    path: Annotated[str, Meta(pattern=r"^/[^\0]{1,4094}\Z")] | None = None
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")] | None = None
    hint: Annotated[str, Meta(max_length=64)] = ""


@dataclass(frozen=True)
class Seen:
    """What is known of a calling process.

    `path` is None if no path leads to the file that it runs, `sha256` if nobody asked for it; both, with the reason in
    `unreadable`, if it cannot be looked at.
    """

    pid: int
    uid: int
    path: str | None
    sha256: str | None
    unreadable: str = ""


def matching(entries: Iterable[Workload], seen: Seen) -> list[Workload]:
    """The entries that a caller fits, in the order of the configuration: the first is its default (Workload API 8)."""
    return [
        one for one in entries
        if one.uid == seen.uid
        and (one.path is None or one.path == seen.path)
        and (one.sha256 is None or one.sha256 == seen.sha256)
    ]


def wants_file(entries: Iterable[Workload], uid: int) -> tuple[bool, bool]:
    """Whether any entry of this user names a path, and whether any names a digest."""
    mine = [one for one in entries if one.uid == uid]
    return any(one.path is not None for one in mine), any(one.sha256 is not None for one in mine)


def problem(entries: Iterable[Workload], trust_domain: str) -> str:
    """What is wrong with the configuration's entries, "" if nothing is. Raises BadInput for an ID that is none."""
    ids, hints = set[str](), set[tuple[int, str]]()
    for one in entries:
        identity = SpiffeId(trust_domain, one.id)
        if identity.name.partition("/")[0] == "admin":
            return f"workload {one.id}: administrators are no programs on this host"
        if one.id in ids:
            return f"workload {one.id}: there are two of this ID"
        if one.hint and (one.uid, one.hint) in hints:
            return f"workload {one.id}: another of the same user has this hint"
        ids.add(one.id)
        hints.add((one.uid, one.hint))
    return ""
