"""Values that are no session: a handshake step by step, what devices sign by HTTPS, one example of each message."""

import base64
import json
from typing import Any, Final

from tests.support import handshake_steps
from tests.support.connection_pair import EPOCH, header
from tests.support.scripted_sessions import (
    ATTEST,
    CHAINS,
    CHALLENGE,
    DEVICE,
    INVITATION,
    ISSUED,
    KEYS,
    NOW,
    RECORDED,
    chain,
    csr_of,
    derived,
)
from transport.events import EventEncoder
from transport.identity.join import DEVICE_LABEL, GATEWAY_LABEL, HttpsOperation, https_transcript, signed_input
from transport.messages import (
    Ack,
    Answer,
    AnswerData,
    Body,
    Cancel,
    Close,
    Credit,
    End,
    Held,
    Message,
    Open,
    Pace,
    Padding,
    Part,
    Ping,
    Pong,
    Posture,
    Proof,
    Refuse,
    Rekey,
    Resume,
    Revocations,
    SpanRecord,
    Spans,
    Welcome,
    encode,
    request_digest,
)
from transport.primitives import sha256
from transport.records import padded_length

ID = b"\x01" * 16
_HEADER: Final = header(b"prompt", expires_at=int(NOW) + 86_400)

EXAMPLES: list[Message] = [
    Open(0, ID, _HEADER, request_digest(_HEADER, b"prompt")),
    Body(0, 0, b"prompt"),
    Credit(127, 262_144),
    Cancel(128),
    Answer(0, 0, 200, "text/event-stream", True),
    AnswerData(65_536, (1 << 53) - 1, bytes(256)),
    End(0, 42, sha256(b"")),
    Refuse(0, 403, "not_allowed", "nicht für dieses Gerät", False),
    Welcome(EPOCH, "spiffe://field.example/hop/pi", 1),
    ISSUED,
    Spans([SpanRecord(
        "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "", "wait", "edge", 1.9e12, 1_900_000_000_000.25,
        {"bytes": 6, "seconds": 2.0},
    )]),
    Rekey(),
    Close("normal"),
    Resume(1, ID, 0, 12),
    Ack(ID, 42),
    Ping(),
    Pong(),
    Pace(Padding.CONSTANT),
    Part(True, b"\x93\x02"),
    Posture("not encrypted", "present", "0.1.0"),
    Held(1_900_000_000),
    Revocations(b"\x93\xc4\x00"),
    ATTEST,
    CHALLENGE,
    Proof(bytes(32)),
]


def values() -> dict[str, Any]:
    """All of it, as it stands in the file."""
    raw = base64.b32decode(INVITATION.encode()[3:].upper() + "=" * (-len(INVITATION.encode()[3:]) % 8))
    return {
        "steps": steps(chain()),
        "https": {"device_key_pkcs8": DEVICE.to_pkcs8().expose().hex(), "requests": https()},
        "invitation": {"text": INVITATION.encode(), "raw": raw.hex()},
        "messages": messages(),
        "events": events(),
        "padding": padding(),
    }


def padding() -> list[list[int]]:
    """[T, P(T)] of bursts that are not flow control alone."""
    edges = {1, 511, 512, 513, 4_095, 4_096, 4_097, 4_608, 4_609, 8_191, 8_192, 8_193, 9_000, 16_384, 16_385, 25_237}
    edges |= {(1 << power) + more for power in range(15, 21) for more in (0, 1)} | {100_000, 600_000}
    return [[total, padded_length(total, control=False)] for total in sorted(edges)]


def events() -> dict[str, str]:
    """A stream of server-sent events, and what stands for it."""
    plain = b"".join(
        b'data: {"choices":[{"delta":{"content":"%s"},"finish_reason":null}]}\n\n' % text
        for text in (b"Boil", b" it", b"", rb" for \"long\"", b".")
    ) + b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    encoder = EventEncoder()
    return {"plain": plain.hex(), "entries": (encoder.feed(plain) + encoder.finish()).hex()}


def messages() -> list[dict[str, str]]:
    names: dict[type, str] = {AnswerData: "data"}  # as the table of section 6 calls it
    return [
        {"name": names.get(type(one), type(one).__name__.lower()), "bytes": encode(one).hex()} for one in EXAMPLES
    ]


def steps(sessions: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the first two sessions of the vector `chain`."""
    out = {}
    for name, session in zip(("full", "resumed"), sessions, strict=False):
        first, second = (bytes.fromhex(session["flights"][index]["bytes"]) for index in (0, 1))
        frames = first, second[: 3 + int.from_bytes(second[1:3], "big")]
        more = {}
        if name == "full":
            state, signed_h = handshake_steps.full(
                1, frames, RECORDED.edge_scalar, RECORDED.edge_kem_seed, RECORDED.gateway_scalar
            )
            more["gateway_signs"] = signed_input(GATEWAY_LABEL, signed_h, sha256(CHAINS["gateway"][0])).hex()
        else:
            state = handshake_steps.resumed(
                session["ticket"], frames, *(bytes.fromhex(session[f"{side}_scalar"]) for side in ("edge", "gateway"))
            )
        export, tickets = state.tickets(bytes.fromhex(session["session_hash"]))
        out[name] = {
            "frames": [frame.hex() for frame in frames], "steps": state.notes, **more,
            "record_keys": dict(zip(("edge", "gateway"), (key.hex() for key in state.split()), strict=True)),
            "session_hash": session["session_hash"], "export": export.hex(), "tickets": tickets,
        }
    return out


def https() -> list[dict[str, Any]]:
    """A join and a renewal by HTTPS: what is signed, and the body that travels."""
    csr, nonce, leaf = csr_of(KEYS["edge"]), derived("nonce"), sha256(CHAINS["gateway"][0])
    device_id = sha256(DEVICE.public.spki)
    proof = {"csr": pack(csr), "nonce": pack(nonce)}
    subjects = {
        HttpsOperation.JOIN: (INVITATION.token_id, {
            "token_id": pack(INVITATION.token_id), "secret": pack(INVITATION.secret.expose()), **proof,
            "device_key": pack(DEVICE.public.spki),
        }),
        HttpsOperation.RENEW: (device_id, {"device_id": pack(device_id), **proof}),
    }
    out = []
    for operation, (subject, body) in subjects.items():
        h = https_transcript(operation, nonce, csr, subject, leaf)
        signed = signed_input(DEVICE_LABEL, h, device_id)
        signature = DEVICE.sign(signed)
        out.append({
            "operation": operation.name.lower(), "server_leaf": CHAINS["gateway"][0].hex(), "h": h.hex(),
            "signed": signed.hex(), "signature": signature.hex(),
            "body": json.dumps(body | {"signature": pack(signature)}),
        })
    return out


def pack(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")
