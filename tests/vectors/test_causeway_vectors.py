"""The project's own vectors through the code that ships: sessions byte for byte, values, and what must be refused."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.outside import ROOT
from tests.support.recorded import run_session
from tests.support.scripted_modes import MODES
from tests.support.scripted_sessions import DEVICE
from tests.support.scripted_sessions import SCRIPTS as PLAIN
from tests.support.vector_accepted import accepted
from tests.support.vector_chains import VERDICTS
from tests.support.vector_decoders import DECODERS, TAKEN, ends, refused
from tests.support.vector_events import events
from tests.support.vector_fault_runs import play, play_links
from tests.support.vector_faults import handshakes, resumptions
from tests.support.vector_hex import lengthen, shorten
from tests.support.vector_refusals import KEY, entries
from tests.support.vector_values import EXAMPLES, values
from tests.support.vector_violations import played, written, written_allowed
from transport.connection import Phase
from transport.errors import IdentityRefused, ProtocolViolation
from transport.events import EventDecoder
from transport.identity.svid import TrustBundle
from transport.identity.verify import SvidVerifier
from transport.messages import decode, encode


def load(name: str) -> Any:
    return json.loads((Path(__file__).parent / name).read_text())


SCRIPTS = PLAIN | MODES
FILE = load("causeway.json")
SESSIONS = load("causeway_sessions.json")["sessions"]
VALUES = load("causeway_values.json")
REFUSED = load("causeway_refused.json")
FAULTS = load("causeway_faults.json")
CHAINS = load("causeway_chains.json")


@pytest.mark.parametrize("vector", FILE["vectors"], ids=lambda vector: vector["name"])
def test_session_vectors(vector: dict) -> None:  # type: ignore[type-arg]
    result = run_session(vector, bytes.fromhex(vector["request_body"]))
    assert result == {name: vector[name] for name in result}
    assert len(result["flights"]) >= 4


def test_a_changed_secret_changes_the_session() -> None:
    vector = FILE["vectors"][0]
    changed = {**vector, "edge_scalar": vector["gateway_scalar"]}
    assert run_session(changed, b"prompt")["flights"] != vector["flights"]


def test_the_specification_quotes_the_first_vector() -> None:
    text = (ROOT / "docs" / "SPEC.md").read_text()
    assert FILE["vectors"][0]["session_hash"] in text and FILE["vectors"][0]["link_id"] in text


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripted_sessions(name: str) -> None:
    """Both cores make these bytes, take each other's, and the steps of section 4 give keys that open them."""
    assert SCRIPTS[name]() == SESSIONS[name]


def test_every_session_is_there() -> None:
    assert SESSIONS.keys() == SCRIPTS.keys()
    seen = {message[2:4] for vectors in SESSIONS.values() for vector in vectors for flight in vector["flights"]
            for held in flight["holds"] for message in held.get("messages", ())}
    # Whatever a session has besides `credit`, `ping` and `pong`, which have nothing to show but themselves.
    assert {int(one, 16) for one in seen} == (set(range(1, 20)) - {3, 16, 17}) | {23, 24, 25}


def test_values() -> None:
    assert {name: VALUES[name] for name in values()} == values()


def test_entries_stand_for_their_events() -> None:
    entries, plain = (bytes.fromhex(VALUES["events"][name]) for name in ("entries", "plain"))
    decoder = EventDecoder()
    assert b"".join(piece for byte in entries for piece in decoder.feed(bytes([byte]))) == plain
    assert len(entries) < len(plain) / 2
    decoder.finish()


@pytest.mark.parametrize(("entry", "message"), list(zip(VALUES["messages"], EXAMPLES, strict=True)))
def test_each_message_both_ways(entry: dict[str, str], message: Any) -> None:
    assert decode(bytes.fromhex(entry["bytes"])) == message and encode(message).hex() == entry["bytes"]


@pytest.mark.parametrize("request_", VALUES["https"]["requests"], ids=lambda one: one["operation"])
def test_the_signature_of_an_https_request(request_: dict[str, str]) -> None:
    body = json.loads(request_["body"])
    given = base64.urlsafe_b64decode(body["signature"] + "==")
    assert given.hex() == request_["signature"]
    DEVICE.public.verify(given, bytes.fromhex(request_["signed"]))
    with pytest.raises(IdentityRefused):
        DEVICE.public.verify(given, bytes.fromhex(request_["signed"])[:-1])


@pytest.mark.parametrize("entry", REFUSED["decoders"], ids=lambda one: f"{one['kind']}: {one['what']}")
def test_what_decoders_refuse(entry: dict[str, str]) -> None:
    assert refused(entry["kind"], lengthen(entry["bytes"]))


@pytest.mark.parametrize("entry", REFUSED["accepted"], ids=lambda one: f"{one['kind']}: {one['what']}")
def test_what_decoders_accept(entry: dict[str, str]) -> None:
    assert not refused(entry["kind"], lengthen(entry["bytes"]))


@pytest.mark.parametrize("kind", TAKEN)
def test_the_same_decoders_take_what_is_right(kind: str) -> None:
    if kind in ("frame 1", "frame 2"):
        with pytest.raises(AssertionError):  # the side that takes it goes on, and asks for a signature
            refused(kind, TAKEN[kind])
    else:
        assert not refused(kind, TAKEN[kind])


def test_the_list_is_the_file() -> None:
    assert [(one["kind"], one["what"], one["bytes"], one["ends"]) for one in REFUSED["decoders"]] == [
        (kind, what, shorten(data), ends(kind, data)) for kind, what, data in entries()
    ]
    assert [(one["kind"], one["what"], one["bytes"]) for one in REFUSED["accepted"]] == [
        (kind, what, shorten(data)) for kind, what, data in accepted()
    ]
    assert {one["kind"] for one in REFUSED["decoders"]} == DECODERS.keys() and REFUSED["record_key"] == KEY.hex()
    assert REFUSED["violations"] == written() and REFUSED["allowed"] == written_allowed()


@pytest.mark.parametrize("entry", REFUSED["violations"], ids=lambda one: f"{one['to']}: {one['what']}")
def test_what_ends_a_session(entry: dict[str, Any]) -> None:
    messages = [lengthen(one) for one in entry["messages"]]
    assert played(entry["to"], messages)[1]
    assert not played(entry["to"], [])[1]


@pytest.mark.parametrize("entry", REFUSED["allowed"], ids=lambda one: f"{one['to']}: {one['what']}")
def test_what_does_not_end_a_session(entry: dict[str, Any]) -> None:
    talk, violated = played(entry["to"], [lengthen(one) for one in entry["messages"]])
    closed = entry["messages"][-1].startswith("920d")
    assert not violated and (talk.edge.phase is Phase.CLOSED) == closed
    if not closed:
        talk.settle()
        assert talk.edge.phase is talk.gateway.phase is Phase.OPEN


def test_the_faults_are_the_file() -> None:
    made = {"handshakes": handshakes(), "resumptions": resumptions(), "events": events()}
    assert {name: FAULTS[name] for name in made} == made


@pytest.mark.parametrize("entry", FAULTS["handshakes"], ids=lambda one: f"{one['to']} {one['type']}: {one['what']}")
def test_a_handshake_with_one_fault(entry: dict[str, Any]) -> None:
    assert play(entry) == entry["ends"]


@pytest.mark.parametrize("entry", FAULTS["resumptions"], ids=lambda one: one["what"])
def test_resumptions(entry: dict[str, Any]) -> None:
    assert play_links(entry) == [link["ends"] for link in entry["links"]]


@pytest.mark.parametrize("entry", FAULTS["events"], ids=lambda one: one["what"])
def test_entries_of_events(entry: dict[str, str]) -> None:
    data = lengthen(entry["entries"])
    for pieces in ([data], [data[at : at + 1] for at in range(min(len(data), 16))] + [data[16:]]):
        decoder = EventDecoder()
        if "plain" in entry:
            assert b"".join(event for piece in pieces for event in decoder.feed(piece)) == lengthen(entry["plain"])
            decoder.finish()
        else:
            with pytest.raises(ProtocolViolation):
                for piece in pieces:
                    list(decoder.feed(piece))
                decoder.finish()


@pytest.mark.parametrize("entry", CHAINS["chains"], ids=lambda one: one["what"])
def test_certificate_chains(entry: dict[str, Any]) -> None:
    bundle = TrustBundle(CHAINS["trust_domain"], (bytes.fromhex(entry["root"]),), 1)
    chain = [bytes.fromhex(one) for one in entry["chain"]]
    try:
        SvidVerifier().verify(chain, bundle, role=CHAINS["role"], now=float(CHAINS["now"]))
        verdict = "accept"
    except IdentityRefused:
        verdict = "refuse"
    assert entry["verdict"] in (verdict, "either")


def test_few_chains_are_left_open() -> None:
    assert len(CHAINS["chains"]) == len(VERDICTS) + 9
    assert [one["verdict"] for one in CHAINS["chains"]].count("either") == 9
