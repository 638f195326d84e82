"""What secrets look like: shapes of keys and tokens as their issuers publish them, compiled for a stream.

A shape is a row of literals and runs of characters. Two patterns are made of all shapes: one for a secret, up to its
least length, and one for everything that could still become one. Sources: AWS "IAM identifiers" (unique ID prefixes),
GitHub "Behind GitHub's new authentication token formats", GitLab "Token overview", Slack "Token types", Stripe "API
keys", Google Cloud "API keys", Microsoft "Azure Storage connection strings", OpenAI, Anthropic and others by the keys
they issue; RFC 7519 (JWT), RFC 7468 and RFC 4880 (PEM), age's own format.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import re2

WINDOW: Final = 1_536  # bytes; no shape is longer before it is told
PRIVATE_KEY: Final = "private-key"
OWN: Final = "gateway-provider-key"

# What may go before the first letter of a word: its text's beginning, no letter, or an escape (see `redaction`).
_BEFORE: Final = r"(?:\A|[^A-Za-z0-9_]|\\[nrtbf]|\\u00[0-9A-Fa-f]{2}|%[0-9A-Fa-f]{2})"
_WORD, _ALNUM, _BASE64 = "[A-Za-z0-9_-]", "[A-Za-z0-9]", "[A-Za-z0-9+/]"


@dataclass(frozen=True)
class Run:
    """`least` to `most` characters of a class, in RE2's syntax."""

    of: str
    least: int
    most: int


@dataclass(frozen=True)
class Shape:
    """`parts` up to where it is told to be a secret, from its first letters on; `rest` is the class of what follows."""

    kind: str
    parts: tuple[str | Run, ...]
    rest: str = "[A-Za-z0-9_-]"


def _keys(kind: str, lead: str, least: int, of: str = _WORD) -> Shape:
    return Shape(kind, (lead, Run(of, least, least)), of)


_KNOWN: Final = (
    _keys("openai-key", "sk-", 20, _ALNUM),
    *(_keys("openai-key", f"sk-{form}-", 20) for form in ("proj", "svcacct", "admin", "None")),
    _keys("anthropic-key", "sk-ant-", 20),
    _keys("openrouter-key", "sk-or-v1-", 20),
    *(_keys("aws-key", lead, 16, "[A-Z2-7]") for lead in ("AKIA", "ASIA", "ABIA", "ACCA")),
    *(
        Shape("aws-key", (name, Run("[\"'\\\\ :=]", 1, 8), Run(_BASE64, 40, 40)), "[A-Za-z0-9+/=]")
        for name in ("aws_secret_access_key", "AWS_SECRET_ACCESS_KEY", "SecretAccessKey")
    ),
    _keys("google-key", "AIza", 35),
    _keys("google-key", "GOCSPX-", 24),
    _keys("google-key", "ya29.", 20),
    *(
        Shape("azure-key", (name, Run(_BASE64, least, least)), "[A-Za-z0-9+/=]")
        for name, least in (("AccountKey=", 86), ("SharedAccessKey=", 43))
    ),
    *(_keys("github-token", f"gh{form}_", 30, _ALNUM) for form in "pousr"),
    _keys("github-token", "github_pat_", 30, "[A-Za-z0-9_]"),
    _keys("gitlab-token", "glpat-", 20),
    *(_keys("slack-token", f"xox{form}-", 10) for form in "abeoprs"),
    _keys("slack-token", "xapp-", 20),
    _keys("slack-token", "hooks.slack.com/services/", 20, "[A-Za-z0-9/]"),
    *(_keys("stripe-key", f"{form}_{mode}_", 16, _ALNUM) for form in ("sk", "rk") for mode in ("live", "test")),
    _keys("stripe-key", "whsec_", 24, "[A-Za-z0-9+/=]"),
    _keys("huggingface-token", "hf_", 30, _ALNUM),
    _keys("groq-key", "gsk_", 40, _ALNUM),
    _keys("xai-key", "xai-", 40, _ALNUM),
    _keys("npm-token", "npm_", 36, _ALNUM),
    _keys("pypi-token", "pypi-AgE", 40),
    _keys("sendgrid-key", "SG.", 40, "[A-Za-z0-9_.-]"),
    _keys("age-key", "AGE-SECRET-KEY-1", 40, "[A-Z0-9]"),
    # Of a JWT nothing beyond the beginning of its second part is waited for; our access tokens are JWTs.
    Shape("jwt", ("eyJ", Run(_WORD, 10, 1000), ".", Run(_WORD, 10, 10)), "[A-Za-z0-9_.-]"),
    *(_keys("invitation", lead, 60, "[A-Za-z2-7]") for lead in ("cw1", "CW1", "Cw1", "cW1")),
    Shape(PRIVATE_KEY, ("-----BEGIN ", Run("[A-Z0-9 ]", 0, 40), "PRIVATE KEY", Run("[A-Z ]", 0, 6), "-----"), ""),
)


class Tier:
    """Shapes that are looked for together."""

    def __init__(self, shapes: Sequence[Shape], *, words: bool) -> None:
        """`words`: only where no word goes before it."""
        self.words = words
        self._shapes = shapes
        self._whole = _compiled("|".join(f"({''.join(map(_whole, shape.parts))})" for shape in shapes))
        self._begun = _compiled("|".join(_begun(shape.parts) for shape in shapes))

    def told(self, window: bytes) -> tuple[Shape, int] | None:
        """Which secret `window` begins with, and its length up to where it was told."""
        found = self._whole.match(window)
        return None if found is None else (self._shapes[found.lastindex - 1], found.end())

    def possible(self, window: bytes) -> bool:
        """Whether all of `window` could be the beginning of one."""
        return self._begun.fullmatch(window) is not None


class Keys:
    """A tier of our own keys, by value, wherever they stand."""

    words = False

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys, self._shape = keys, Shape(OWN, (), "")

    def told(self, window: bytes) -> tuple[Shape, int] | None:
        for key in self._keys:
            if window.startswith(key):
                return self._shape, len(key)
        return None

    def possible(self, window: bytes) -> bool:
        return any(key.startswith(window) for key in self._keys)


class Shapes:
    """Everything to be looked for: `keys` by value, before all else, and the known shapes."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        own = sorted({key[:WINDOW] for key in keys if key}, key=len)
        self.tiers: list[Keys | Tier] = [*([Keys(own)] if own else []), Tier(_KNOWN, words=True)]
        known = {lead[:6] for shape in _KNOWN if isinstance(lead := shape.parts[0], str)}
        anywhere = {key[:6].decode("latin-1") for key in own} | {lead for lead in known if not lead[0].isalnum()}
        leads = _any(known | anywhere)
        self._first = _compiled(f"{leads}|{_ends(known | anywhere)}")
        self._some = re2.Set.SearchSet(_options())
        for pattern in (leads, _BEFORE + _ends(known), _ends(anywhere)):
            self._some.Add(pattern.encode("latin-1"))
        self._some.Compile()

    def clean(self, text: bytes) -> bool:
        """Whether no secret could begin in `text`, nor at its end one that goes on; half as costly as `first`. What it
        finds may be none. Where a word goes before is not overlooked if `text` has the six bytes before.
        """
        return self._some.Match(text) is None

    def first(self, text: bytes, at: int) -> int:
        """Where, from `at` on, a secret could begin; -1 if nowhere. The bytes at the end may be the first of one."""
        found = self._first.search(text, at)
        return -1 if found is None else int(found.start())


def _any(texts: set[str]) -> str:
    return f"(?:{'|'.join(re2.escape(one) for one in sorted(texts))})"


def _ends(leads: set[str]) -> str:
    """A beginning of one of them, where the text ends."""
    return _any({lead[:size] for lead in leads for size in range(1, len(lead))}) + "\\z"


def _whole(part: str | Run) -> str:
    if isinstance(part, Run):
        return f"{part.of}{{{part.least},{part.most}}}"
    return str(re2.escape(part))


def _begun(parts: Sequence[str | Run]) -> str:
    """A pattern for every beginning of `parts`, the empty one and the whole among them."""
    if not parts:
        return ""
    part, after = parts[0], _begun(parts[1:])
    if isinstance(part, Run):
        return f"(?:{part.of}{{0,{part.most}}}|{part.of}{{{part.least},{part.most}}}{after})"
    return "".join(f"(?:{re2.escape(letter)}" for letter in part) + after + ")?" * len(part)


def _options() -> Any:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1  # bytes; what is cut out is ASCII, but for the text behind a PEM
    options.log_errors = False  # a pattern may hold a key
    return options


def _compiled(pattern: str) -> Any:
    return re2.compile(pattern.encode("latin-1"), _options())
