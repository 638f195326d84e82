"""docs/SPEC.md says what the code does: error codes, close codes, messages and limits are compared with it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from relay.gateway import answers, public
from relay.gateway.call import ACKNOWLEDGED, SUPERSEDED, JournalLimits
from relay.gateway.checks.problems import PROBLEMS
from relay.gateway.identity import dpop, enrolment, nonces
from relay.gateway.journal import CANCELLED, INTERRUPTED, UNKNOWN
from relay.gateway.listening import HttpsLimits
from relay.gateway.pipeline import Refusal
from relay.gateway.requests import ACKS_MAX
from relay.gateway.sessions import SessionLimits
from relay.hop import identity
from transport import connection, events, gateway_mux, handshake, messages, pacing, records, session, stream, tickets
from transport.identity import join, revocation, svid, verify
from transport.links import base, websocket
from transport.responder import UNVERIFIED_MAX

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "SPEC.md").read_text()


def section(number: int) -> str:
    return TEXT[TEXT.index(f"\n## {number}. ") : TEXT.index(f"\n## {number + 1}. ")]


def rows(text: str) -> list[list[str]]:
    """Cells of all table rows but heads and rules."""
    lines = re.findall(r"(?m)^\|(.*)\|$", text)
    table = [[cell.strip() for cell in line.split("|")] for line in lines]
    rules = [set("".join(row)) <= {"-"} for row in table]
    return [row for row, rule, head in zip(table, rules, [*rules[1:], False], strict=True) if not rule and not head]


ERRORS = {row[0].strip("`"): (int(row[1]), row[2]) for row in rows(section(11))}
KEPT = {row[0].strip("`"): row[3] for row in rows(section(11))}
LIMITS = {row[0]: row[1] for row in rows(section(12))}


def refusals() -> Iterator[tuple[str, int | None, bool | None, str]]:
    """(code, status, whether it may be retried, where), None where the source does not say it in so many words."""
    for path in [*(ROOT / "relay" / "gateway").rglob("*.py"), *(ROOT / "transport").rglob("*mux.py")]:
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            words = {word.arg: word.value for word in call.keywords if word.arg}
            where = f"{path.relative_to(ROOT)}:{call.lineno}"
            if name in ("Refusal", "refuse") and len(call.args) >= 3:
                at = call.args.index(next((one for one in call.args if _code(one)), call.args[0]))
                if not _code(call.args[at]):
                    continue  # passes on what another has made
                status = _value(call.args[at - 1])
                retry = words.get("retryable", call.args[at + 2] if len(call.args) > at + 2 else ast.Constant(False))
                yield _code(call.args[at]), status, _value(retry), where
            elif name == "ProviderFailure":
                again = words.get("again", ast.Constant(False))
                yield _code(words["kind"]), _value(words["status"]), _value(again), where


def _code(node: ast.AST) -> str:
    value = getattr(node, "value", None)
    fits = isinstance(node, ast.Constant) and isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9_]{0,47}", value)
    return str(value) if fits else ""


def _value(node: ast.AST) -> Any:
    return node.value if isinstance(node, ast.Constant) else None


FOUND = list(refusals())


@pytest.mark.parametrize(("code", "status", "again", "where"), FOUND, ids=[f"{one[0]} {one[3]}" for one in FOUND])
def test_each_refusal_is_in_the_table(code: str, status: int | None, again: bool | None, where: str) -> None:
    assert code in ERRORS, where
    listed, retryable = ERRORS[code]
    assert status == listed, where
    if retryable in ("yes", "no"):
        assert again == (retryable == "yes"), where


def test_the_table_has_no_other_code() -> None:
    made = {code for code, *_ in FOUND} | {INTERRUPTED.code}
    assert made == ERRORS.keys()
    assert isinstance(INTERRUPTED, Refusal) and ERRORS["interrupted"] == (INTERRUPTED.status, "no")


def test_the_program_lists_the_same() -> None:
    """In `problems`, by which docs/GATEWAY_API.md and `/openapi.json` tell of them."""
    assert {code: one.status for code, one in PROBLEMS.items()} == {code: row[0] for code, row in ERRORS.items()}


def test_which_refusals_are_kept() -> None:
    """What is retryable, or comes from a check, leaves nothing in the journal; the provider's other failures do."""
    for code, _, again, where in FOUND:
        if "/checks/" in where or ERRORS[code][1] == "yes":
            assert KEPT[code] == "no", where
        elif where.startswith("relay/gateway/upstream/") and again is False:
            assert KEPT[code] != "no", where
    assert KEPT[INTERRUPTED.code] == KEPT[CANCELLED.code] == "yes"
    assert KEPT[SUPERSEDED.code] == KEPT[ACKNOWLEDGED.code] == KEPT[UNKNOWN.code] == "no"


def test_close_codes() -> None:
    used = {connection.CLOSE_REFUSED, connection.CLOSE_REVOKED}
    for path in (file for folder in ("transport", "relay", "edge_client") for file in (ROOT / folder).rglob("*.py")):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if ast.unparse(call.func).endswith("link.close"):
                continue  # a link's end has reasons of its own
            if name in ("Close", "close") and call.args and _code(call.args[0]):
                used.add(_code(call.args[0]))
    end = section(7)[section(7).index("**End.**") :]
    assert used == {row[0].strip("`") for row in rows(end)}


def test_what_a_page_is_refused_with() -> None:
    text = section(8)[section(8).index("### 8.4 ") :]
    table = {code.strip(" `"): int(row[0]) for row in rows(text) if row[0].isdigit() for code in row[1].split(",")}
    assert table == {code: status for code, (status, _) in public._ANSWERS.items()}


def test_message_numbers() -> None:
    table = {int(row[0]): row[1] for row in rows(section(6))}
    tags = {kind.__struct_config__.tag: kind.__name__.lower() for kind in get_args(messages.Message)}
    assert table == {**tags, 6: "data"}


def _n(value: float) -> str:
    return f"{value:,.0f}"


_SECOND_MIN = handshake.SECOND_BODY_MAX - handshake.PAYLOAD_MAX + handshake.PAYLOAD_BLOCK
EXPECTED = {
    "length of frame 1, type 1 and 3": _n(handshake.FIRST_BODY_LEN),
    "length of frame 1, type 2": f"{handshake.RESUME_BODY_MIN} to {handshake.RESUME_BODY_MAX:,}",
    "length of frame 2, type 2": _n(handshake.RESUMED_SECOND_LEN),
    "plaintext of a payload of the handshake": f"{handshake.PAYLOAD_MAX:,}, a multiple of {handshake.PAYLOAD_BLOCK}",
    "early data": _n(handshake.EARLY_MAX),
    "messages of early data, or behind record 0": _n(connection.EARLY_FLIGHT),
    "bytes held behind record 0": _n(UNVERIFIED_MAX),
    "length of frame 2, type 1 and 3": f"{_SECOND_MIN:,} to {handshake.SECOND_BODY_MAX:,}",
    "length of record 0": f"{handshake.PAYLOAD_BLOCK + 16} to {handshake.PAYLOAD_MAX + 16:,}",
    "a step of the handshake": f"{connection.STEP_DEADLINE_S:.0f} s",
    "the handshake at the gateway": f"{SessionLimits().handshake_s:.0f} s",
    "tickets of a session": _n(tickets.TICKETS),
    "plaintext of a record": f"{records.RECORD_MIN - 16} to {messages.RECORD_PLAINTEXT_MAX:,}",
    "a message": _n(messages.MESSAGE_MAX),
    "data of `body`, `data`, `part`": f"1 to {messages.DATA_MAX:,}",
    "a request header": _n(messages.HEADER_MAX),
    "a request body": _n(messages.REQUEST_BODY_MAX),
    "an entry of events": _n(events.BODY_MAX),
    "prefix and suffix of events": _n(events.TEMPLATE_MAX),
    "an answer": f"2^{(stream.ANSWER_MAX + 1).bit_length() - 1} - 1",
    "`expires at`": f"{messages.REQUEST_LIFETIME_MAX_S // 86_400} days ahead",
    "open streams of a session": _n(messages.STREAMS_MAX),
    "spans of a message": _n(messages.SPANS_MAX),
    "first credit of a body": _n(stream.BODY_CREDIT),
    "first credit of an answer": _n(stream.ANSWER_CREDIT),
    "records under one key": f"2^{records.REKEY_RECORDS.bit_length() - 1}",
    "plaintext under one key": f"2^{records.REKEY_BYTES.bit_length() - 1}",
    "time under one key": f"{records.REKEY_SECONDS} s",
    "a `rekey` at the earliest": f"{records.REKEY_FLOOR_BYTES:,} bytes or {records.REKEY_FLOOR_SECONDS:.0f} s",
    "burst of flow control": f"multiples of {records.CONTROL_BLOCK}",
    "any other burst": f"at least {records.BURST_FLOOR}",
    "a tick": f"{pacing.TICK_S * 1_000:.0f} ms",
    "a cell in `bucket`": _n(pacing.BUCKET_CELL),
    "a cell in `constant`": _n(pacing.CONSTANT_CELL),
    "room of a cell for `rekey`": _n(records.REKEY_ROOM),
    "foot of the ladder": _n(pacing.LADDER_FOOT),
    "tails at a time": _n(gateway_mux.TAILS_MAX),
    "ticks that a tail leaves out": f"{pacing.LULL_MAX} in a row",
    "silence until a tail is over": f"{pacing.QUIET_S * 1_000:.0f} ms",
    "wait for `close` to leave": f"{session.FLUSH_S:.0f} s",
    "silence before `ping`": f"{connection.IDLE_S:.0f} s",
    "silence before the link is lost": f"{connection.SILENCE_S:.0f} s",
    "certificates of a chain": _n(svid.CHAIN_MAX),
    "a certificate": _n(svid.CERTIFICATE_MAX),
    "a CSR": _n(svid.CSR_MAX),
    "a SPIFFE ID": _n(svid.ID_MAX),
    "a trust domain": _n(svid.TRUST_DOMAIN_MAX),
    "leeway of certificates": f"{verify.LEEWAY_S:.0f} s",
    "an invitation": f"{join.LINE_MAX:,} characters",
    "hints of an invitation": f"{join.HINTS_MAX} of {join.HINT_MAX}",
    "life of an invitation": f"{enrolment.INVITATION_MAX_S:,} s",
    "life of a nonce": f"{nonces.NONCE_S} s",
    "a revocation list": _n(revocation.LIST_MAX),
    "enrolments on it": _n(revocation.ENROLMENTS_MAX),
    "serial numbers on it": _n(revocation.SERIALS_MAX),
    "a body by HTTPS": _n(answers.BODY_MAX),
    "an answer by HTTPS": _n(identity.ANSWER_MAX),
    "a frame of a tunnel": _n(base.RECEIVE_MAX),
    "a note of a hop": _n(websocket.NOTE_MAX),
    "a proof of a page's key": f"{dpop.PROOF_MAX:,} characters",
    "first message of a page's tunnel": f"{public.FIRST_MAX:,} characters",
    "a page's clock beside the gateway's": f"{dpop.AROUND_S} s",
    "life of an access token": f"{dpop.TOKEN_S} s",
}


@pytest.mark.parametrize("what", sorted(EXPECTED.keys() | LIMITS.keys()))
def test_limits(what: str) -> None:
    assert LIMITS.get(what) == EXPECTED.get(what)


def test_what_a_gateway_sets_for_itself() -> None:
    sessions, journal, tls = SessionLimits(), JournalLimits(), HttpsLimits()
    said = " ".join(section(12).split())
    assert f"{sessions.per_device} sessions of one device" in said and f"{sessions.requests} requests at work" in said
    assert f"{sessions.sessions:,} links; {sessions.handshakes} handshakes under way" in said
    assert f"{sessions.full_per_second:.0f} begun a second" in said
    assert f"{journal.live} calls that run, {journal.waiting:,} answers not acknowledged" in said
    assert f"{journal.kept >> 20} MiB of them, {journal.rows:,} outcomes" in said
    assert f"{ACKS_MAX:,} requests of one session whose `ack` waits" in said
    assert (tls.handshake_s, tls.idle_s, tls.life_s, tls.body_s) == (10, 10, 30, 10)
