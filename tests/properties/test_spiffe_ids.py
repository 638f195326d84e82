"""SPIFFE IDs against an oracle: the grammar of SPIFFE-ID section 2, written down as one expression."""

import re
import string

from hypothesis import given
from hypothesis import strategies as st

from transport.errors import NotSpiffeId
from transport.identity.svid import SpiffeId

_UNRESERVED = r"[A-Za-z0-9._-]"
GRAMMAR = re.compile(rf"spiffe://[a-z0-9._-]{{1,255}}(?:/(?!\.{{1,2}}(?:/|\Z)){_UNRESERVED}+)*\Z", re.ASCII)
HOST = string.ascii_lowercase + string.digits + "._-"
RULES = {
    "ID scheme", "ID query", "ID fragment", "ID user info", "ID port", "ID length", "path percent-encoding",
    "path empty segment", "path relative segment", "path trailing slash", "path characters",
    *(f"trust domain {rule}" for rule in ("empty", "case", "characters", "percent-encoding", "length")),
}

segments = st.text(HOST + string.ascii_uppercase, min_size=1, max_size=12) | st.sampled_from([".", "..", "...", ""])
hosts = st.text(HOST, min_size=1, max_size=12) | st.text(HOST, min_size=250, max_size=260)
written = st.builds(
    lambda scheme, host, path: scheme + host + "".join("/" + one for one in path),
    st.sampled_from(["spiffe://"] * 6 + ["Spiffe://", "spiffe:/", "https://"]), hosts, st.lists(segments, max_size=5),
)
edges = st.builds(lambda size: "spiffe://a/" + "b" * size, st.integers(2030, 2045))
marks = st.sampled_from([*"/.:%?#@[]~ \n\0\t\\A\u00e4\u0661\u212a", "%2e", "//", "/.", "/..", ":1", "me@"])


@st.composite
def near_misses(draw: st.DrawFn) -> str:
    text: str = draw(written)
    at: int = draw(st.integers(0, len(text)))
    return f"{text[:at]}{draw(marks)}{text[at + draw(st.integers(0, 1)):]}"


def grammatical(text: str) -> bool:
    return len(text.encode()) <= 2048 and GRAMMAR.match(text) is not None


@given(text=written | near_misses() | edges | st.text(max_size=30))
def test_an_id_is_what_the_grammar_says(text: str) -> None:
    try:
        parsed = SpiffeId.parse(text)
    except NotSpiffeId as error:
        assert not grammatical(text)
        assert error.rule in RULES
    else:
        assert grammatical(text)
        assert str(parsed) == text and SpiffeId(parsed.trust_domain, parsed.path) == parsed


@given(host=hosts | st.text(max_size=8), path=st.text(HOST + "/%?#@: A", max_size=20))
def test_parts_make_an_id_if_the_whole_is_one(host: str, path: str) -> None:
    """No part can smuggle in another: what is built by its parts parses to the same parts."""
    try:
        built = SpiffeId(host, path)
    except NotSpiffeId:
        assert not grammatical(f"spiffe://{host}{path}") or "/" in host or path[:1] not in ("", "/")
    else:
        assert grammatical(str(built)) and SpiffeId.parse(str(built)) == built
