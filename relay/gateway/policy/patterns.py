"""ID patterns, and the groups that they give to IDs. Matched segment by segment, so that `/a` is never `/ab`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from relay.gateway.errors import ConfigError
from transport.errors import BadInput
from transport.identity.svid import SpiffeId

WILD: Final = "*"
Pattern = tuple[str, ...]


def parse_pattern(pattern: str) -> Pattern:
    """Segments of a pattern; `*` stands for exactly one whole segment.

    So `/edge/*` is neither `/edge` nor `/edge/a/b` nor `/edges/a`. Raises ConfigError for a pattern that could never
    match an ID, or that means something else elsewhere.
    """
    lead, *segments = pattern.split("/")
    if lead or not segments:
        raise ConfigError("an ID pattern starts with a slash", hint='for example "/edge/*"')
    for segment in segments:
        if segment != WILD and not _is_segment(segment):
            raise ConfigError(
                "an ID pattern has a segment that no ID can have",
                hint="segments are letters, digits, dot, dash and underscore, or a * alone",
            )
    if segments[0] == WILD:
        raise ConfigError("an ID pattern names the role first", hint='for example "/edge/*"')
    return tuple(segments)


def pattern_at(where: str, text: str) -> Pattern:
    """`parse_pattern` of what stands at `where` in gateway.toml. Raises ConfigError that names it."""
    try:
        return parse_pattern(text)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}", hint=error.hint) from None


def covers(wide: Sequence[str], narrow: Sequence[str]) -> bool:
    """Whether every ID that fits `narrow`, a pattern or an ID's own segments, fits `wide`."""
    return len(wide) == len(narrow) and all(a in (WILD, b) for a, b in zip(wide, narrow, strict=True))


@dataclass
class _Branch:
    below: dict[str, "_Branch"] = field(default_factory=dict)
    groups: set[str] = field(default_factory=set)


class Groups:
    """Which groups an ID is in. Costs as many steps as the path has segments, however many patterns there are."""

    def __init__(self, patterns: Iterable[tuple[str, Pattern]]) -> None:
        """`patterns`: pairs of a group and a parsed pattern; a group may have many."""
        self._root = _Branch()
        for group, segments in patterns:
            branch = self._root
            for segment in segments:
                branch = branch.below.setdefault(segment, _Branch())
            branch.groups.add(group)

    def of(self, path: str) -> tuple[str, ...]:
        """Sorted names. `path` is that of a SPIFFE ID, with its leading slash."""
        level = [self._root]
        for segment in path.split("/")[1:]:
            level = [branch.below[key] for branch in level for key in (segment, WILD) if key in branch.below]
        return tuple(sorted(set().union(*(branch.groups for branch in level))))


def _is_segment(segment: str) -> bool:
    try:
        SpiffeId("x", "/" + segment)
    except BadInput:
        return False
    return True
