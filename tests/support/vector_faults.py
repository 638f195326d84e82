"""Handshakes with exactly one fault each, all tags right, and early data that breaks one rule each.

What is made here is made from the recorded secrets, so that only the check which is meant can refuse it.
`vector_fault_runs` gives it to the cores that ship.
"""

from collections.abc import Callable
from typing import Any, Final

from cryptography import x509

from tests.support import handshake_steps
from tests.support.connection_pair import EPOCH, header, verifier
from tests.support.scripted_sessions import (
    BUNDLE,
    CHAINS,
    DEVICE,
    FIRST,
    INVITATION,
    ISSUED,
    KEYS,
    NOW,
    RECORDED,
    csr_of,
    derived,
    derived_key,
)
from tests.support.vector_hex import shorten
from tests.support.vector_refusals import framed, pack
from tests.support.vector_values import ID
from transport.handshake import (
    FrameType,
    InitiatorHandshake,
    ResumedResponder,
    ResumingInitiator,
    frame,
    pad_payload,
    prologue,
)
from transport.identity.join import (
    DEVICE_LABEL,
    EDGE_LABEL,
    GATEWAY_LABEL,
    Invitation,
    signed_input,
)
from transport.identity.verify import verify_svid
from transport.messages import (
    Ack,
    Answer,
    Body,
    Cancel,
    Close,
    Credit,
    Message,
    Open,
    Pace,
    Padding,
    Ping,
    Resume,
    Welcome,
    encode,
    request_digest,
)
from transport.noise import NN_HFS, PRODUCT_SUITE, CipherState, HandshakeState
from transport.primitives import Secret, SigningKey, sha256
from transport.tickets import Ticket

Entry = dict[str, Any]
LEAF_END: Final = x509.load_der_x509_certificate(CHAINS["edge"][0]).not_valid_after_utc.timestamp()
LATE: Final = NOW + 7_200  # the leaves of the first vector have run out, and nothing else has
FULL, RESUMED, JOIN = FrameType.FULL, FrameType.RESUME, FrameType.FULL_WITH_ROOT
WELCOME: Final = Welcome(EPOCH, "", 1)
_OTHER_INVITATION: Final = Invitation(
    sha256(b"another root"), INVITATION.token_id, INVITATION.secret, INVITATION.trust_domain, INVITATION.role_path
)


# --- what a gateway sends --------------------------------------------------------------------------------------------

def frame_1(kind: FrameType) -> bytes:
    return InitiatorHandshake(kind, RECORDED.for_edge(), verifier(BUNDLE, "gateway")).first_frame()


def frame_2(
    kind: FrameType, *, who: str = "gateway", key: SigningKey = KEYS["gateway"], label: bytes = GATEWAY_LABEL,
    h: bytes | None = None, subject: bytes | None = None, tail: list[bytes] | None = None,
    payload: Callable[[bytes], bytes] = pad_payload,
) -> bytes:
    noise = HandshakeState(
        NN_HFS, PRODUCT_SUITE, initiator=False, prologue=prologue(kind), ephemerals=RECORDED.for_gateway()
    )
    noise.read_message(frame_1(kind)[3:])
    tokens = noise.write_tokens()
    chain = [*CHAINS[who], *(tail if tail is not None else [BUNDLE.roots[0]] if kind is JOIN else [])]
    signed = signed_input(label, h or noise.handshake_hash, subject or sha256(chain[0]))
    return frame(kind, tokens + noise.write_payload(payload(pack([chain, key.sign(signed)]))))


def _frames_2() -> list[Entry]:
    out = []
    for kind in (FULL, JOIN):
        faults: dict[str, bytes] = {
            "a signature by another key": frame_2(kind, key=KEYS["edge"]),
            "a signature under the edge's label": frame_2(kind, label=EDGE_LABEL),
            "a signature over another h": frame_2(kind, h=bytes(32)),
            "a signature over another leaf": frame_2(kind, subject=sha256(CHAINS["edge"][0])),
            "an SVID of role edge, rightly signed": frame_2(kind, who="edge", key=KEYS["edge"]),
            "a block of padding too many": frame_2(kind, payload=lambda one: pad_payload(one) + bytes(512)),
            "padding that is not zero": frame_2(kind, payload=lambda one: pad_payload(one)[:-1] + b"\x01"),
            "a field too many": frame_2(kind, payload=lambda one: pad_payload(b"\x93" + one[1:] + b"\xc0")),
            "a byte behind the message": frame_2(kind, payload=lambda one: pad_payload(one + b"\0")),
        }
        out += [_to_edge(kind, what, [data]) for what, data in faults.items()]
        out.append(_to_edge(kind, "a leaf that ran out before `now`, rightly signed", [frame_2(kind)], now=LATE))
    out.append(_to_edge(JOIN, "a root that is not the invitation's, all else right", [frame_2(JOIN)],
                        invitation=_OTHER_INVITATION.encode()))
    out.append(_to_edge(JOIN, "no root behind the chain", [frame_2(JOIN, tail=[])]))
    return out


def _to_edge(kind: int, what: str, flights: list[bytes], *, ends: str = "link", **more: Any) -> Entry:
    return {"to": "edge", "type": int(kind), "what": what, **more, "flights": list(map(shorten, flights)), "ends": ends}


def _first_messages() -> list[Entry]:
    """The gateway's first message, behind a right handshake."""
    ticket, first = tickets_of_first()[0], resumed_frame(0, b"")
    responder = ResumedResponder(ticket, RECORDED.for_resumption()[1])
    responder.read_first(first[19:])
    second = responder.second_frame()

    def of(kind: FrameType, message: Message) -> list[bytes]:
        if kind is FrameType.RESUME:
            return [second + seal_with(resumed_keys(first, second)[1], [encode(message)])]
        return [frame_2(kind), seal_with(record_keys(kind)[1], [encode(message)])]

    answer = Answer(0, 0, 200, "", False)
    return [
        _to_edge(FULL, "`issued` as the first message", of(FULL, ISSUED)),
        _to_edge(FULL, "`answer` as the first message", of(FULL, answer)),
        _to_edge(FULL, "`ping` before `welcome`", of(FULL, Ping())),
        _to_edge(JOIN, "`welcome` as the first message", of(JOIN, WELCOME)),
        _to_edge(RESUMED, "`issued` as the first message", of(RESUMED, ISSUED)),
        _to_edge(RESUMED, "`answer` as the first message", of(RESUMED, answer)),
        _to_edge(FULL, "what is right", of(FULL, WELCOME), ends="passes"),
        _to_edge(RESUMED, "what is right", of(RESUMED, WELCOME), ends="passes"),
        _to_edge(JOIN, "what is right", of(JOIN, ISSUED), ends="passes"),
        _to_edge(FULL, "leaves that ran out 30 s ago", of(FULL, WELCOME)[:1], now=LEAF_END + 30, ends="passes"),
        _to_edge(FULL, "`welcome`, and leaves that ran out 30 s ago", of(FULL, WELCOME), now=LEAF_END + 30,
                 ends="close expired"),
        _to_edge(FULL, "leaves that ran out 61 s ago", of(FULL, WELCOME)[:1], now=LEAF_END + 61),
        _to_edge(JOIN, "a leaf that ran out 60 s ago", of(JOIN, ISSUED), now=LEAF_END + 60, ends="passes"),
    ]


def _hints() -> list[Entry]:
    return [_to_edge(kind, f"hint {code}", [bytes([0, code])], ends=f"hint {taken}") for kind, code, taken in (
        (FULL, 1, 1), (FULL, 2, 2), (FULL, 3, 1), (FULL, 0, 1), (FULL, 255, 1), (JOIN, 3, 1), (RESUMED, 1, 1),
        (RESUMED, 2, 2), (RESUMED, 3, 3), (RESUMED, 4, 1),
    )]


def record_keys(kind: FrameType) -> tuple[bytes, bytes]:
    """(edge's, gateway's) behind the right frames 1 and 2."""
    return _steps(kind).split()


def resumed_keys(first: bytes, second: bytes) -> tuple[bytes, bytes]:
    """Likewise, behind frames of type 2 by one of the first vector's tickets."""
    named = next(one for one in FIRST["tickets"] if one["id"] == first[3:19].hex())
    scalars = RECORDED.resuming_edge_scalar, RECORDED.resuming_gateway_scalar
    return handshake_steps.resumed(named, (first, second), *scalars).split()


def _steps(kind: FrameType) -> handshake_steps.Steps:
    steps, _ = handshake_steps.full(
        kind, (frame_1(kind), frame_2(kind)), RECORDED.edge_scalar, RECORDED.edge_kem_seed, RECORDED.gateway_scalar
    )
    return steps


def seal_with(key: bytes, messages: list[bytes], n: int = 0) -> bytes:
    """One record of a burst, with counter `n`."""
    return seal_plain(key, framed(*messages).ljust(512, b"\0"), n)


def seal_plain(key: bytes, plaintext: bytes, n: int = 0) -> bytes:
    cipher, head = CipherState(PRODUCT_SUITE, key), (len(plaintext) + 16).to_bytes(2, "big")
    for _ in range(n):
        cipher.encrypt(b"", b"")
    return head + cipher.encrypt(head, plaintext)


# --- what an edge sends ----------------------------------------------------------------------------------------------

OTHER_DEVICE: Final = derived_key("other device")


def _sign(kind: FrameType, key: SigningKey, label: bytes, subject: bytes, h: bytes | None = None) -> bytes:
    return key.sign(signed_input(label, h or _steps(kind).h, sha256(subject)))


def _records_0() -> list[Entry]:
    chain, leaf, edge, csr = CHAINS["edge"], CHAINS["edge"][0], KEYS["edge"], csr_of(KEYS["edge"])
    device, other = DEVICE.public.spki, OTHER_DEVICE.public.spki

    def svid(signature: bytes, of: list[bytes] = chain) -> bytes:
        return pack([1, of, signature])

    def join(
        signature: bytes, *, token: bytes = INVITATION.token_id, secret: bytes = INVITATION.secret.expose(),
        request: bytes = csr, key: bytes = device,
    ) -> bytes:
        return pack([3, token, secret, request, key, signature])

    def renew(signature: bytes, *, of: bytes = device, request: bytes = csr) -> bytes:
        return pack([2, sha256(of), request, signature])

    def entry(kind: FrameType, what: str, message: bytes, *, ends: str = "close refused", **more: Any) -> Entry:
        key = record_keys(kind)[0]
        return _to_gateway(kind, what, [seal_plain(key, pad_payload(message))], ends, **more)

    good = _sign(FULL, edge, EDGE_LABEL, leaf)
    joins, renews = (_sign(JOIN, DEVICE, DEVICE_LABEL, device) for _ in range(2))
    foreign = _changed_signature(csr)
    key_1 = record_keys(FULL)[0]
    right = seal_plain(key_1, pad_payload(svid(good)))
    return [
        entry(FULL, "what is right", svid(good), ends="passes"),
        entry(FULL, "a signature by another key", svid(_sign(FULL, DEVICE, EDGE_LABEL, leaf))),
        entry(FULL, "a signature under the gateway's label", svid(_sign(FULL, edge, GATEWAY_LABEL, leaf))),
        entry(FULL, "a signature under the device's label", svid(_sign(FULL, edge, DEVICE_LABEL, leaf))),
        entry(FULL, "a signature over another h", svid(_sign(FULL, edge, EDGE_LABEL, leaf, bytes(32)))),
        entry(FULL, "a signature over another leaf", svid(_sign(FULL, edge, EDGE_LABEL, CHAINS["gateway"][0]))),
        entry(FULL, "an SVID of role gateway, rightly signed",
              svid(_sign(FULL, KEYS["gateway"], EDGE_LABEL, CHAINS["gateway"][0]), CHAINS["gateway"])),
        entry(FULL, "a leaf that ran out before `now`, rightly signed", svid(good), now=LATE),
        entry(FULL, "a leaf that ran out 30 s ago", svid(good), now=LEAF_END + 30, ends="close expired"),
        entry(FULL, "a leaf that ends now", svid(good), now=LEAF_END, ends="close expired"),
        entry(FULL, "a leaf that ran out 61 s ago", svid(good), now=LEAF_END + 61),
        entry(FULL, "a leaf that ends in a second", svid(good), now=LEAF_END - 1, ends="passes"),
        entry(FULL, "kind 3 with a right signature", join(_sign(FULL, DEVICE, DEVICE_LABEL, device))),
        entry(FULL, "kind 2 with a right signature", renew(_sign(FULL, DEVICE, DEVICE_LABEL, device))),
        _to_gateway(FULL, "a plaintext of 100 bytes", [seal_plain(key_1, bytes(100))], "close refused"),
        _to_gateway(FULL, "a plaintext of 8,704 bytes",
                    [seal_plain(key_1, pad_payload(svid(good)).ljust(8_704, b"\0"))], "close refused"),
        _to_gateway(FULL, "a length of 16", [b"\x00\x10" + bytes(16)], "link"),
        _to_gateway(FULL, "a length of 16,401", [b"\x40\x11"], "link"),
        _to_gateway(FULL, "a wrong tag", [right[:-1] + bytes([right[-1] ^ 1])], "link"),
        _to_gateway(FULL, "16,385 bytes behind it, before it is admitted", [right + b"\x40\x10" + bytes(16_383)],
                    "link"),
        entry(JOIN, "a join that is right", join(joins), ends="passes"),
        entry(JOIN, "a renewal that is right", renew(renews), ends="passes"),
        entry(JOIN, "kind 1 with a right signature", svid(_sign(JOIN, edge, EDGE_LABEL, leaf))),
        entry(JOIN, "a join signed by the SVID's key", join(_sign(JOIN, edge, DEVICE_LABEL, device))),
        entry(JOIN, "a join signed under the edge's label", join(_sign(JOIN, DEVICE, EDGE_LABEL, device))),
        entry(JOIN, "a join signed over another subject", join(_sign(JOIN, DEVICE, DEVICE_LABEL, other))),
        entry(JOIN, "a join signed over another h", join(_sign(JOIN, DEVICE, DEVICE_LABEL, device, bytes(32)))),
        entry(JOIN, "a join with another secret", join(joins, secret=derived("other")[:16])),
        entry(JOIN, "a join with an unknown token", join(joins, token=derived("other")[:8])),
        entry(JOIN, "a join whose CSR is signed by another key", join(joins, request=foreign)),
        entry(JOIN, "a join whose CSR is for the device key", join(joins, request=csr_of(DEVICE))),
        entry(JOIN, "a join whose CSR does not decode", join(joins, request=b"\x30\x00")),
        entry(JOIN, "a renewal signed by another device", renew(_sign(JOIN, OTHER_DEVICE, DEVICE_LABEL, device))),
        entry(JOIN, "a renewal signed under the edge's label", renew(_sign(JOIN, DEVICE, EDGE_LABEL, device))),
        entry(JOIN, "a renewal by a device that is not registered",
              renew(_sign(JOIN, OTHER_DEVICE, DEVICE_LABEL, other), of=other)),
        entry(JOIN, "a renewal whose CSR is signed by another key", renew(renews, request=foreign)),
        entry(JOIN, "a renewal whose CSR is for the device key", renew(renews, request=csr_of(DEVICE))),
    ]


def _changed_signature(csr: bytes) -> bytes:
    """Another key's signature over the same request."""
    other = csr_of(OTHER_DEVICE)
    own, foreign = KEYS["edge"].public.spki, OTHER_DEVICE.public.spki
    return other.replace(foreign, own)


def _to_gateway(kind: int, what: str, flights: list[bytes], ends: str, **more: Any) -> Entry:
    return {"to": "gateway", "type": int(kind), "what": what, **more, "flights": list(map(shorten, flights)),
            "ends": ends}


# --- resumption ------------------------------------------------------------------------------------------------------

def tickets_of_first() -> list[Ticket]:
    """Those of the first vector, in a gateway's hands."""
    peer = verify_svid(CHAINS["edge"], BUNDLE, role="edge", now=NOW)
    return [
        Ticket(bytes.fromhex(one["id"]), Secret(bytes.fromhex(one["psk"])), peer, peer.not_after)
        for one in FIRST["tickets"]
    ]


def _initiator(ticket: int) -> ResumingInitiator:
    return ResumingInitiator(tickets_of_first()[ticket], RECORDED.for_resumption()[0])


def resumed_frame(ticket: int, early: bytes) -> bytes:
    return _initiator(ticket).first_frame(early)


def _first_record(early: bytes = b"", *messages: Message) -> bytes:
    """The edge's first record in the session that such a frame 1 began, by the first ticket."""
    responder, first = ResumedResponder(tickets_of_first()[0], RECORDED.for_resumption()[1]), resumed_frame(0, early)
    responder.read_first(first[19:])
    return seal_with(resumed_keys(first, responder.second_frame())[0], list(map(encode, messages)))


def _asked(stream: int = 0, body: bytes = b"prompt", cut: int = 0) -> list[Message]:
    head = header(body, expires_at=int(NOW) + 86_400)
    return [Open(stream, ID, head, request_digest(head, body)), Body(stream, 0, body[: len(body) - cut])]


def _early(*messages: Message, raw: bytes = b"") -> bytes:
    return (framed(*map(encode, messages)) + raw).ljust(512, b"\0")


def resumptions() -> list[Entry]:
    """Each one or more links to one gateway that holds the four tickets of the first vector."""
    head = header(b"", expires_at=int(NOW) + 86_400)
    bad: dict[str, bytes] = {
        "a `ping` in early data": _early(Ping()),
        "an `ack` in early data": _early(Ack(ID, 0)),
        "a `pace` in early data": _early(Pace(Padding.BUCKET)),
        "a `credit` in early data": _early(*_asked(), Credit(0, 300_000)),
        "a `cancel` in early data": _early(*_asked(), Cancel(0)),
        "a `close` in early data": _early(Close("normal")),
        "a request whose body is not whole": _early(*_asked(cut=1)),
        "a request without its body": _early(_asked()[0]),
        "a wrong digest": _early(Open(0, ID, head, bytes(32))),
        "a body for a stream never opened": _early(Body(0, 0, b"x")),
        "a message that does not decode": _early(raw=b"\x00\x01\xc1"),
        "a right request before one that does not decode": _early(*_asked(), raw=b"\x00\x01\xc1"),
    }
    broken: dict[str, bytes] = {
        "early data whose last message is cut": b"\x00\x05" + encode(Ping()),
        "early data with padding that is not zero": bytes(511) + b"\x01",
    }
    first, early = resumed_frame(0, b""), _early(*_asked())
    out = [_links(what, (resumed_frame(0, inside), "close protocol_error")) for what, inside in bad.items()]
    out += [_links(what, (resumed_frame(0, inside), "link"), (first, "hint 3")) for what, inside in broken.items()]
    return [
        *out,
        _links("no early data", (first, "passes")),
        _links("early data that is padding alone", (resumed_frame(0, bytes(512)), "passes")),
        _links("early data without padding", (resumed_frame(0, framed(*map(encode, _asked()))), "passes")),
        _links("a request and a `resume`", (resumed_frame(0, _early(*_asked(), Resume(1, ID, 0, 0))), "passes")),
        _links("16,384 bytes of early data", (resumed_frame(0, bytes(16_384)), "passes")),
        _links("a length of 16,482", (b"\x02\x40\x62", "link")),
        _links("a ticket used twice", (first, "passes"), (resumed_frame(0, bytes(512)), "hint 3")),
        _links("a sibling before the first record of the edge", (first, "passes"), (resumed_frame(1, b""), "passes")),
        _links("a sibling behind the first record of the edge",
               ([first, _first_record(b"", Ping())], "passes"), (resumed_frame(1, b""), "hint 3")),
        _links("a wrong tag burns nothing", (first[:-1] + bytes([first[-1] ^ 1]), "link"), (first, "passes")),
        _links("a ticket whose time is over", (first, "hint 3"), now=LATE),
        _links("a ticket whose time ends now", (first, "hint 3"), now=LEAF_END),
        _links("a ticket whose time ends in a second", (first, "passes"), now=LEAF_END - 1),
        _links("`pace` behind early data",
               ([resumed_frame(0, early), _first_record(early, Pace(Padding.OFF))], "passes")),
        _links("`pace(constant)` behind early data",
               ([resumed_frame(0, early), _first_record(early, Pace(Padding.CONSTANT))],
                "passes")),
        _links("`pace` behind another message",
               ([first, _first_record(b"", Ack(ID, 0), Pace(Padding.OFF))], "close protocol_error")),
        _links("a byte behind frame 1", (first + b"\0", "link"), (first, "passes")),
    ]


def _links(what: str, *links: tuple[bytes | list[bytes], str], **more: Any) -> Entry:
    return {"what": what, **more, "links": [
        {"flights": [shorten(one) for one in ([data] if isinstance(data, bytes) else data)], "ends": ends}
        for data, ends in links
    ]}


def handshakes() -> list[Entry]:
    return [*_frames_2(), *_hints(), *_first_messages(), *_records_0()]
