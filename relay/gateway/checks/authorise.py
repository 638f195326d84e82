"""May this identity do this? A static allow-list of models per ID pattern; what no rule allows is denied."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from relay.gateway.errors import ConfigError
from relay.gateway.pipeline import Refusal, RequestContext
from transport.errors import BadInput
from transport.identity.svid import SpiffeId

_UNKNOWN_ROUTE: Final = Refusal(404, "unknown_route", "the gateway has no such route")
_DENIED: Final = Refusal(403, "not_allowed", "this device may not use this gateway's models")
_MODEL_DENIED: Final = Refusal(
    403, "model_not_allowed", "this device may not use that model; /v1/models lists its own"
)


class _Model(msgspec.Struct):
    """The one field needed here; the whole body is `schema`'s, and not worth reading for one who may do nothing."""

    model: str = ""


_peek = msgspec.json.Decoder(_Model)


@dataclass(frozen=True)
class AllowRule:
    """IDs whose path fits `pattern` may use `models`.

    A pattern is matched segment by segment; `*` stands for exactly one whole segment. So `/edge/*` is neither `/edge`
    nor `/edge/a/b` nor `/edges/a`.
    """

    pattern: tuple[str, ...]
    models: frozenset[str]

    @classmethod
    def parse(cls, pattern: str, models: Iterable[str]) -> "AllowRule":
        """Raises ConfigError for a pattern that could never match an ID, or that means something else elsewhere."""
        lead, *segments = pattern.split("/")
        if lead or not segments:
            raise ConfigError("an ID pattern starts with a slash", hint='for example "/edge/*"')
        for segment in segments:
            if segment != "*" and not _is_segment(segment):
                raise ConfigError(
                    "an ID pattern has a segment that no ID can have",
                    hint="segments are letters, digits, dot, dash and underscore, or a * alone",
                )
        if segments[0] == "*":
            raise ConfigError("an ID pattern names the role first", hint='for example "/edge/*"')
        allowed = frozenset(models)
        if not allowed:
            raise ConfigError("a rule allows at least one model", hint='as in models = ["gpt-4o-mini"]')
        if any("*" in model for model in allowed):
            raise ConfigError("models are named in full", hint="a * in a model name has no meaning here")
        return cls(tuple(segments), allowed)

    def fits(self, path: str) -> bool:
        """Whether an ID's path (with its leading slash) fits the pattern."""
        segments = path.split("/")[1:]
        return len(segments) == len(self.pattern) and all(
            wanted in ("*", segment) for wanted, segment in zip(self.pattern, segments, strict=True)
        )


class AllowList:
    """All rules; they only ever add."""

    def __init__(self, rules: Sequence[AllowRule]) -> None:
        self._rules = tuple(rules)

    def models(self, path: str) -> list[str]:
        """Names of the models an ID may use, sorted; empty if no rule fits."""
        found: set[str] = set()
        for rule in self._rules:
            if rule.fits(path):
                found |= rule.models
        return sorted(found)

    def allows(self, path: str, model: str) -> bool:
        return any(model in rule.models and rule.fits(path) for rule in self._rules)


class Authorise:
    """After authenticate. Sets `context.model`, which schema then confirms to be the only one the body names."""

    def __init__(self, allowed: AllowList) -> None:
        self._allowed = allowed

    async def check(self, context: RequestContext) -> Refusal | None:
        target = context.target
        if target is None:
            return _UNKNOWN_ROUTE
        path = context.peer.id.path
        if not self._allowed.models(path):
            return _DENIED
        if not target.bodied:
            return None
        try:
            model = _peek.decode(context.body).model
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return None  # not a request at all: schema says what is wrong with it, and nothing passes schema
        if not model:
            return None  # likewise
        if not self._allowed.allows(path, model):
            return _MODEL_DENIED
        context.model = model
        return None


def _is_segment(segment: str) -> bool:
    try:
        SpiffeId("x", "/" + segment)
    except BadInput:
        return False
    return True
