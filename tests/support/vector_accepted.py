"""What decoders must take, though a strict one might not: the last good value of each bound, rare forms. By kind."""

from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from tests.support.scripted_sessions import DEVICE, INVITATION, KEYS, csr_of
from tests.support.vector_refusals import KEY, Entry, framed, pack, seal
from tests.support.vector_values import ID
from transport.handshake import pad_payload
from transport.identity.join import Invitation
from transport.messages import Cancel, Ping, Rekey, encode
from transport.noise import PRODUCT_SUITE, CipherState
from transport.primitives import Secret

_PING: Final = encode(Ping())


def _messages() -> dict[str, bytes]:
    def spans(count: int = 1, **change: Any) -> bytes:
        span = {"trace": "0" * 32, "span": "0" * 16, "parent": "", "name": "n", "role": "edge", "start": 0.0,
                "end": 0.0, "attributes": {}}
        return pack([11, [list((span | change).values())] * count])

    return {
        "stream 2^31 - 1": pack([4, (1 << 31) - 1]),
        "limit 2^31 - 1": pack([3, 0, (1 << 31) - 1]),
        "limit 0": pack([3, 0, 0]),
        "offset 2^53 - 1": pack([2, 0, (1 << 53) - 1, b"x"]),
        "data of 16,350 bytes": pack([2, 0, 0, bytes(16_350)]),
        "a header of 2,048 bytes": pack([1, 0, ID, bytes(2_048), bytes(32)]),
        "status 100": pack([5, 0, 0, 100, "", False]),
        "status 599": pack([5, 0, 0, 599, "", True]),
        "a content type of 128 characters": pack([5, 0, 0, 200, "x" * 128, False]),
        "a content type of 128 characters of four bytes": pack([5, 0, 0, 200, "\U0001f300" * 128, False]),
        "a code of one letter": pack([13, "x"]),
        "a code of 48 characters": pack([13, "x" + "_0" * 23 + "9"]),
        "a refusal's text of 512 characters of two bytes": pack([8, 0, 400, "no", "\xe4" * 512, False]),
        "a refusal's text with a zero and a line feed": pack([8, 0, 400, "no", "a\0b\n", False]),
        "a via that is no SPIFFE ID": pack([9, bytes(16), "x", 0]),
        "a via of 2,048 characters": pack([9, bytes(16), "x" * 2_048, (1 << 53) - 1]),
        "issued with three certificates of 2,048 bytes": pack([10, "", [bytes(2_048)] * 3, [b"x"] * 3, 0, 1]),
        "issued with enrolment 2^53 - 1": pack([10, "", [b"x"], [b"x"], 0, (1 << 53) - 1]),
        "32 spans": spans(32),
        "a span that is all its bounds": spans(name="x" * 64, role="provider", parent="f" * 16, start=1e15, end=1e15),
        "a span whose end is before its start": spans(start=2.0, end=1.0),
        "16 attributes": spans(attributes={f"k{index}": index for index in range(16)}),
        "attributes that are not in order": spans(attributes={"b": 0, "a": 0}),
        "an attribute with an empty key": spans(attributes={"": ""}),
        "an attribute's key of 64 characters": spans(attributes={"k" * 64: "x" * 128}),
        "attributes that are negative": spans(attributes={"a": -1, "b": -33, "c": -129, "d": -32_769, "e": -(1 << 63)}),
        "an attribute of 2^64 - 1": spans(attributes={"a": (1 << 64) - 1}),
        "an attribute of -10^18": spans(attributes={"a": -1e18}),
        "an attribute of minus zero": spans(attributes={"a": -0.0}),
    }


def _headers() -> dict[str, bytes]:
    good: list[Any] = ["POST", "/v1/x", "application/json", "", 6, 1_900_000_000]

    def but(index: int, value: Any) -> bytes:
        return pack([*good[:index], value, *good[index + 1 :]])

    return {
        "a method of three letters": but(0, "GET"),
        "a method of eight letters": but(0, "ABCDEFGH"),
        "a route of 128 characters": but(1, "/" + "x" * 127),
        "a route with dots and slashes": but(1, "//../."),
        "an empty content type": but(2, ""),
        "a content type of 128 characters": but(2, "x" * 128),
        "a traceparent of 55 characters that is none": but(3, "x" * 55),
        "a body of 1,048,576 bytes": but(4, 1 << 20),
        "an expiry of 0": but(5, 0),
        "an expiry of 2^40": but(5, 1 << 40),
    }


def _csr_that_wants_much() -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "anybody")])
    ).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).add_extension(
        x509.SubjectAlternativeName([x509.DNSName("x")]), critical=False
    )
    request = builder.sign(KEYS["edge"].private_key, hashes.SHA256(), ecdsa_deterministic=True)
    return request.public_bytes(serialization.Encoding.DER)


def _invitations() -> dict[str, bytes]:
    line = INVITATION.encode()

    def of(domain: str = "field.example", path: str = "edge/lap-1", hints: tuple[str, ...] = ()) -> bytes:
        return Invitation(bytes(32), bytes(8), Secret(bytes(16)), domain, path, hints).encode().encode()

    return {
        "capitals": line.upper().encode(),
        "white space around it": b" \t" + line.encode() + b"\r\n",
        "a trust domain of 255 characters": of("a" * 255),
        "a trust domain of one character": of("_"),
        "a path of three segments": of(path="edge/a/..b"),
        "no hints": of(),
        "eight hints, one of a form that is not known": of(hints=("tcp:a:1",) * 7 + ("carrier pigeon: 7",)),
        "a hint with an unassigned code point": of(hints=("tcp:\u0378:1",)),
        "hints of 256 bytes": of(hints=("x" * 256, "\xe4" * 128)),
    }


def _rekeyed() -> bytes:
    cipher, out = CipherState(PRODUCT_SUITE, KEY), b""
    for plain in (*[bytes(16_384)] * 3, framed(encode(Rekey())).ljust(16_384, b"\0"), framed(_PING)):
        head = (len(plain) + 16).to_bytes(2, "big")
        out += head + cipher.encrypt(head, plain)
        if any(plain) and len(plain) == 16_384:
            cipher.rekey()
    return out


def accepted() -> list[Entry]:
    lists: dict[str, dict[str, bytes]] = {
        "message": _messages(),
        "header": _headers(),
        "record": {
            "one byte of padding": seal(b"\0"),
            "16,384 bytes of padding": seal(bytes(16_384)),
            "the longest data, and no padding": seal(framed(pack([2, 0, 1 << 40, bytes(16_350)]))),
            "two messages and a single zero": seal(framed(_PING, encode(Cancel(0))) + b"\0"),
            "a `rekey` at once, with the 65,536th byte, and a record behind it": _rekeyed(),
            "padding that is no burst's": seal(framed(_PING) + bytes(3)),
        },
        "payload": {
            "8,192 bytes": pad_payload(bytes(8_189) + b"\x01"),
            "510 bytes in one block": pad_payload(b"\x01" * 510),
            "511 bytes in two blocks": pad_payload(b"\x01" * 511),
        },
        "device key": {"canonical": DEVICE.public.spki},
        "CSR": {
            "empty subject and attributes": csr_of(KEYS["edge"]),
            "a subject, and critical requested extensions": _csr_that_wants_much(),
        },
        "invitation": _invitations(),
    }
    return [(kind, what, data) for kind, entries in lists.items() for what, data in entries.items()]
