"""What a decoder must refuse, by kind of decoder: (kind, what is wrong, bytes). See `vector_decoders` for the kinds."""

import base64
from collections.abc import Callable
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.connection_pair import header
from tests.support.scripted_sessions import (
    CHAINS,
    DEVICE,
    FIRST,
    INVITATION,
    KEYS,
    NOW,
    csr_of,
)
from tests.support.vector_values import EXAMPLES, ID
from transport.handshake import (
    JoinOffer,
    RenewOffer,
    SvidOffer,
    encode_offer,
    pad_payload,
)
from transport.messages import encode
from transport.noise import PRODUCT_SUITE, CipherState

KEY = bytes(range(32))  # of the record entries; counter 0
Entry = tuple[str, str, bytes]
pack: Callable[[Any], bytes] = msgspec.msgpack.encode
FRAMES = [bytes.fromhex(FIRST["flights"][index]["bytes"]) for index in (0, 1)]
GOOD = {type(one).__name__: encode(one) for one in EXAMPLES}
HEAD = header(b"prompt", expires_at=int(NOW) + 86_400)
_PEM = b"-----BEGIN CERTIFICATE REQUEST-----\n%s\n-----END CERTIFICATE REQUEST-----\n"
_BODY = b"\x94\x02\x00\x00\xc4\x06prompt"


def seal(plaintext: bytes, key: bytes = KEY) -> bytes:
    head = (len(plaintext) + 16).to_bytes(2, "big")
    return head + CipherState(PRODUCT_SUITE, key).encrypt(head, plaintext)


def framed(*encoded: bytes) -> bytes:
    return b"".join(len(one).to_bytes(2, "big") + one for one in encoded)


def _flip(data: bytes, at: int, bit: int = 1) -> bytes:
    changed = bytearray(data)
    changed[at] ^= bit
    return bytes(changed)


def _messages() -> list[Entry]:
    span = ["0" * 32, "0" * 16, "", "n", "edge", 0.0, 0.0, {}]

    def spans(**change: Any) -> bytes:
        names = ("trace", "span", "parent", "name", "role", "start", "end", "attributes")
        return pack([11, [[change.get(name, value) for name, value in zip(names, span, strict=True)]]])

    wrong = {
        "nothing": b"",
        "no array": b"\x02",
        "a map": b"\x81\x00\x02",
        "an empty array": b"\x90",
        "an unknown type": b"\x91\x17",
        "type 0": b"\x91\x00",
        "a field too few": b"\x93\x02\x00\x00",
        "a field too many": b"\x92\x10\x00",
        "a byte behind the array": b"\x91\x10\x00",
        "cut short": _BODY[:-1],
        "type not in its shortest form": b"\x91\xcc\x10",
        "array header not in its shortest form": b"\xdc\x00\x01\x10",
        "an integer not in its shortest form": b"\x92\x04\xcc\x05",
        "a bin header not in its shortest form": b"\x94\x02\x00\x00\xc5\x00\x06prompt",
        "a str where bin is due": b"\x94\x02\x00\x00\xa6prompt",
        "bin where a str is due": b"\x92\x0d\xc4\x06normal",
        "a str header not in its shortest form": b"\x92\x0d\xd9\x06normal",
        "invalid UTF-8": pack([8, 0, 403, "no", "x", False]).replace(b"\xa1x", b"\xa1\xff"),
        "a signed integer": b"\x92\x04\xd0\x05",
        "1,000 in a signed form of the same length": pack([3, 0, 1_000]).replace(b"\xcd", b"\xd1"),
        "an attribute of 1,000 in a signed form": spans(attributes={"k": 1_000}).replace(b"\xcd", b"\xd1"),
        "enrolment 2^53": pack([10, "", [b"x"], [b"x"], 0, 1 << 53]),
        "a generation of 2^31": pack([14, 0, ID, 1 << 31, 0]),
        "bundle sequence 2^53": pack([9, bytes(16), "", 1 << 53]),
        "an attribute of -2^63 - 1 as bin": spans(attributes={"k": bytes(9)}),
        "an epoch of 17 bytes": pack([9, bytes(17), "", 1]),
        "a negative stream": b"\x92\x04\xff",
        "a float stream": pack([4, 0.0]),
        "a nil": b"\x92\x04\xc0",
        "a bool as an integer": b"\x92\x04\xc3",
        "an extension type": b"\x92\x04\xd4\x01\x00",
        "stream 2^31": pack([4, 1 << 31]),
        "limit 2^31": pack([3, 0, 1 << 31]),
        "offset 2^53": pack([2, 0, 1 << 53, b"x"]),
        "empty data": pack([2, 0, 0, b""]),
        "data of 16,351 bytes": pack([2, 0, 0, bytes(16_351)]),
        "a part without data": pack([19, False, b""]),
        "a request id of 15 bytes": pack([15, bytes(15), 0]),
        "a request id of 17 bytes": pack([15, bytes(17), 0]),
        "a digest of 31 bytes": pack([1, 0, ID, b"x", bytes(31)]),
        "an empty header": pack([1, 0, ID, b"", bytes(32)]),
        "a header of 2,049 bytes": pack([1, 0, ID, bytes(2_049), bytes(32)]),
        "status 99": pack([5, 0, 0, 99, "", False]),
        "status 600": pack([5, 0, 0, 600, "", False]),
        "streamed as 1": pack([5, 0, 0, 200, "", 1]),
        "a content type of 129 characters": pack([5, 0, 0, 200, "x" * 129, False]),
        "a code with a capital": pack([13, "Normal"]),
        "a code that begins with a digit": pack([13, "1x"]),
        "an empty code": pack([13, ""]),
        "a code of 49 characters": pack([13, "x" * 49]),
        "a code with a line feed at its end": pack([13, "x\n"]),
        "a refusal's text of 513 characters": pack([8, 0, 400, "no", "x" * 513, False]),
        "an epoch of 15 bytes": pack([9, bytes(15), "", 1]),
        "a via of 2,049 characters": pack([9, bytes(16), "x" * 2_049, 1]),
        "issued with an empty chain": pack([10, "", [], [b"x"], 0, 1]),
        "issued with four certificates": pack([10, "", [b"x"] * 4, [b"x"], 0, 1]),
        "issued with an empty certificate": pack([10, "", [b""], [b"x"], 0, 1]),
        "issued with a certificate of 2,049 bytes": pack([10, "", [bytes(2_049)], [b"x"], 0, 1]),
        "enrolment 0": pack([10, "", [b"x"], [b"x"], 0, 0]),
        "no span": pack([11, []]),
        "33 spans": pack([11, [span] * 33]),
        "a span of seven fields": pack([11, [span[:7]]]),
        "a trace id in capitals": spans(trace="A" * 32),
        "a span id of 15 digits": spans(span="0" * 15),
        "a parent id of one digit": spans(parent="0"),
        "a span without a name": spans(name=""),
        "a span's name of 65 characters": spans(name="x" * 65),
        "an unknown role": spans(role="cloud"),
        "a start time as an integer": spans(start=0),
        "a negative start time": spans(start=-1.0),
        "an end time above 10^15": spans(end=1.1e15),
        "a start time that is not a number": spans(start=float("nan")).replace(b"\xc0", b"\xcb\x7f\xf8" + bytes(6), 1),
        "a start time in float32": spans(start=0.0).replace(b"\xcb" + bytes(8), b"\xca" + bytes(4), 1),
        "17 attributes": spans(attributes={f"k{index}": 0 for index in range(17)}),
        "an attribute named twice": spans(attributes={"k": 0, "l": 0}).replace(b"\xa1l", b"\xa1k"),
        "an attribute's key of 65 characters": spans(attributes={"k" * 65: 0}),
        "an attribute's text of 129 characters": spans(attributes={"k": "x" * 129}),
        "an attribute that is a bool": spans(attributes={"k": True}),
        "an attribute that is nil": spans(attributes={"k": None}),
        "an attribute above 10^18": spans(attributes={"k": 1.1e18}),
        "an unknown mode": pack([18, "none"]),
        "an unknown state of the disk": pack([20, "open", "unknown", ""]),
        "an unknown state of the TPM": pack([20, "unknown", "yes", ""]),
        "a version of two numbers": pack([20, "unknown", "unknown", "1.2"]),
        "a version with a number of four digits": pack([20, "unknown", "unknown", "1.2.3456"]),
        "a version of 41 characters": pack([20, "unknown", "unknown", "1.2.3+" + "x" * 35]),
        "a posture of two fields": pack([20, "unknown", "unknown"]),
    }
    return [("message", what, data) for what, data in wrong.items()]


def _headers() -> list[Entry]:
    good = ["POST", "/v1/x", "application/json", "", 6, 1_900_000_000]

    def but(index: int, value: Any) -> bytes:
        return pack([value if at == index else one for at, one in enumerate(good)])

    wrong = {
        "nothing": b"",
        "a field too few": pack(good[:5]),
        "a field too many": pack([*good, 0]),
        "a byte behind the array": pack(good) + b"\0",
        "a method of two letters": but(0, "GO"),
        "a method in small letters": but(0, "post"),
        "a route without a slash": but(1, "v1"),
        "a route of a slash alone": but(1, "/"),
        "a route with a query": but(1, "/v1?x"),
        "a route of 129 characters": but(1, "/" + "x" * 128),
        "a route with a line feed at its end": but(1, "/v1\n"),
        "a content type of 129 characters": but(2, "x" * 129),
        "a traceparent of 56 characters": but(3, "x" * 56),
        "a body of 1,048,577 bytes": but(4, (1 << 20) + 1),
        "a negative body length": but(4, -1),
        "a negative expiry": but(5, -1),
        "an expiry above 2^40": but(5, (1 << 40) + 1),
        "an expiry as a float": but(5, 1.9e9),
    }
    return [("header", what, data) for what, data in wrong.items()]


def _records() -> list[Entry]:
    ping = b"\x91\x10"
    good = seal(framed(ping).ljust(64, b"\0"))
    wrong = {
        "length 0": b"\0\0",
        "length 16": (16).to_bytes(2, "big") + bytes(16),
        "length 16,401": (16_401).to_bytes(2, "big"),
        "a changed length": _flip(good, 1) + b"\0",
        "a changed ciphertext": _flip(good, 2),
        "a changed tag": _flip(good, -1),
        "another key": seal(framed(ping), bytes(32)),
        "no associated data": good[:2] + CipherState(PRODUCT_SUITE, KEY).encrypt(b"", framed(ping).ljust(64, b"\0")),
        "padding that is not zero": seal(framed(ping) + b"\0\0\x01"),
        "a message behind padding": seal(framed(ping) + b"\0\0" + framed(ping)),
        "a message that the record cuts": seal(b"\0\x03" + ping),
        "a single byte at the end that is not zero": seal(framed(ping) + b"\x01"),
        "a message behind `rekey`": seal(framed(b"\x91\x0c", ping)),
        "`rekey` twice": seal(framed(b"\x91\x0c", b"\x91\x0c")),
        "a `rekey` too soon": seal(framed(ping)) + _second(framed(b"\x91\x0c")),
        "a message that does not decode": seal(framed(b"\xc1")),
    }
    return [("record", what, data) for what, data in wrong.items()]


def _second(plaintext: bytes) -> bytes:
    cipher = CipherState(PRODUCT_SUITE, KEY)
    cipher.encrypt(b"", b"")
    head = (len(plaintext) + 16).to_bytes(2, "big")
    return head + cipher.encrypt(head, plaintext)


def frame_entries() -> list[Entry]:
    first, second = FRAMES
    point, kem = first[3:68], first[68:]
    return [("frame 1", what, data) for what, data in {
        "an unknown type": b"\x04" + first[1:],
        "a hint from the edge": b"\x00\x01",
        "a length one too small": b"\x01\x04\xe0" + first[3:-1],
        "a length one too large": b"\x01\x04\xe2" + first[3:] + b"\0",
        "a byte behind it": first + b"\0",
        "a compressed point": first[:3] + b"\x02" + first[4:],
        "a hybrid point": first[:3] + b"\x06" + first[4:],
        "a point off the curve": first[:3] + _flip(point, 64) + kem,
        "the point at infinity": first[:3] + bytes(65) + kem,
        "x above the field": first[:3] + b"\x04" + b"\xff" * 64 + kem,
        "an encapsulation key above its modulus": first[:68] + b"\xff" * 1_184,
        "type 2 with a body too short": b"\x02\x00\x60" + bytes(96),
        "type 2 with a body too long": b"\x02\x40\x62" + bytes(16_482),
        "type 2 with an unknown ticket": b"\x02\x00\x61" + bytes(16) + point + bytes(16),
    }.items()] + [("frame 2", what, data) for what, data in {
        "another type": b"\x03" + second[1:],
        "type 2": b"\x02" + second[1:],
        "a length that fits no block": b"\x01" + (len(second) - 4).to_bytes(2, "big") + second[3:-1],
        "a payload of 8,704 bytes": b"\x01" + (65 + 1_104 + 8_704 + 16).to_bytes(2, "big") + bytes(9_889),
        "no payload": b"\x01" + (65 + 1_104 + 16).to_bytes(2, "big") + second[3 : 3 + 65 + 1_120],
        "a byte behind it": second + b"\0",
        "a compressed point": second[:3] + b"\x02" + second[4:],
        "a point off the curve": _flip(second, 67),
        "the edge's own point": second[:3] + point + second[68:],
        "a changed ciphertext": _flip(second, 68),
        "a changed tag of the ciphertext": _flip(second, 68 + 1_103),
        "a changed payload": _flip(second, 68 + 1_104),
        "a changed tag of the payload": _flip(second, -1),
    }.items()]


def _payloads() -> list[Entry]:
    chain, signature = CHAINS["edge"], bytes(64)
    good = pad_payload(b"\x91\x10")
    offer = encode_offer(SvidOffer(chain, signature))
    csr = csr_of(KEYS["edge"])
    return [("payload", what, data) for what, data in {
        "nothing": b"",
        "a length of zero": bytes(512),
        "511 bytes": good[:-1],
        "a block too many": good + bytes(512),
        "padding that is not zero": good[:-1] + b"\x01",
        "a length beyond the end": b"\x02\x00" + bytes(510),
        "8,704 bytes": pad_payload(bytes(8_000) + b"\x01") + bytes(512),
    }.items()] + [("credential, type 1", what, data) for what, data in {
        "kind 2": encode_offer(RenewOffer(bytes(32), csr, signature)),
        "kind 3": encode_offer(JoinOffer(bytes(8), bytes(16), csr, DEVICE.public.spki, signature)),
        "kind 4": pad_payload(pack([4, chain, signature])),
        "kind not in its shortest form": pad_payload(b"\x93\xcc\x01" + pack(chain) + pack(signature)),
        "no kind": pad_payload(pack([chain, signature])),
        "an empty chain": pad_payload(pack([1, [], signature])),
        "four certificates": pad_payload(pack([1, [chain[0]] * 4, signature])),
        "a signature of 63 bytes": pad_payload(pack([1, chain, bytes(63)])),
        "a signature of zeros": offer,
        "a field too many": pad_payload(pack([1, chain, signature, 0])),
        "a byte behind the message": pad_payload(pack([1, chain, signature]) + b"\0"),
    }.items()] + [("credential, type 3", what, data) for what, data in {
        "kind 1": offer,
        "kind 2 with a device id of 31 bytes": pad_payload(pack([2, bytes(31), csr, signature])),
        "kind 2 with a CSR of 1,025 bytes": pad_payload(pack([2, bytes(32), bytes(1_025), signature])),
        "kind 3 with a device key of 129 bytes": pad_payload(
            pack([3, bytes(8), bytes(16), csr, bytes(129), signature])
        ),
        "kind 3 with a secret of 15 bytes": pad_payload(pack([3, bytes(8), bytes(15), csr, b"x", signature])),
        "kind 3 with a signature of zeros": encode_offer(
            JoinOffer(bytes(8), bytes(16), csr, DEVICE.public.spki, signature)
        ),
    }.items()]


def _csr_p384() -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.sign(ec.derive_private_key(7, ec.SECP384R1()), hashes.SHA256(), ecdsa_deterministic=True)
    return request.public_bytes(serialization.Encoding.DER)


def _keys() -> list[Entry]:
    spki, csr = DEVICE.public.spki, csr_of(KEYS["edge"])
    point = spki[-65:]
    compressed = bytes([2 + (point[-1] & 1)]) + point[1:33]
    head = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200")
    public = bytes.fromhex(FIRST["flights"][0]["bytes"])[68:]
    return [("device key", what, data) for what, data in {
        "nothing": b"",
        "a byte behind it": spki + b"\0",
        "the compressed form": head + compressed,
        "a point off the curve": _flip(spki, -1),
        "another curve": ec.derive_private_key(1, ec.SECP256K1()).public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    }.items()] + [("CSR", what, data) for what, data in {
        "nothing": b"",
        "a changed signature": _flip(csr, -1),
        "a byte behind it": csr + b"\0",
        "signed by another key": csr_of(DEVICE).replace(DEVICE.public.spki, KEYS["edge"].public.spki),
        "for a key on P-384": _csr_p384(),
        "PEM": _PEM % base64.b64encode(csr),
        "1,025 bytes": csr.ljust(1_025, b"\0"),
    }.items()] + [("point", what, data) for what, data in {
        "nothing": b"", "64 bytes": point[:64], "66 bytes": point + b"\0", "compressed": compressed,
        "hybrid": bytes([6 + (point[-1] & 1)]) + point[1:], "off the curve": _flip(point, 64), "infinity": b"\0",
    }.items()] + [("encapsulation key", what, data) for what, data in {
        "1,183 bytes": public[:-1], "1,185 bytes": public + b"\0", "a coefficient of 3,329": b"\x01\x0d" + public[2:],
    }.items()]


def _invitations() -> list[Entry]:
    line = INVITATION.encode()
    raw = base64.b32decode(line[3:].upper() + "=" * (-len(line[3:]) % 8))

    def but(changed: bytes) -> bytes:
        return b"cw1" + base64.b32encode(changed).rstrip(b"=").lower()

    at = 1 + 32 + 8 + 16
    domain, path = b"\x0dfield.example", b"\x0aedge/lap-1"
    hints = raw[at + len(domain) + len(path) :]
    return [("invitation", what, data) for what, data in {
        "nothing": b"",
        "another prefix": b"cw2" + line[3:].encode(),
        "a character too few": line[:-1].encode(),
        "unused bits that are not zero": line[:-1].encode() + bytes([ord(line[-1]) + 1]),
        "padding": line.encode() + b"=",
        "white space inside": line[:20].encode() + b" " + line[20:].encode(),
        "a digit that base32 lacks": line[:10].encode() + b"1" + line[11:].encode(),
        "version 2": but(b"\x02" + raw[1:]),
        "the prefix alone": b"cw1",
        "cut behind the secret": but(raw[:at]),
        "a domain with a capital": but(raw[:at] + b"\x0dField.example" + path + hints),
        "an empty domain": but(raw[:at] + b"\0" + path + hints),
        "a path with a leading slash": but(raw[:at] + domain + b"\x0b/edge/lap-1" + hints),
        "a path without a name": but(raw[:at] + domain + b"\x04edge" + hints),
        "a length beyond the end": but(raw[:at] + domain + b"\xffedge/lap-1" + hints),
        "a byte behind the hints": but(raw + b"\0"),
        "hints not in canonical form": but(raw[:at] + domain + path + b"\xdc\x00\x00"),
        "an empty hint": but(raw[:at] + domain + path + pack([""])),
        "a hint with a line feed": but(raw[:at] + domain + path + pack(["a\nb"])),
        "a letter that folds to k": line.replace("k", "\u212a", 1).encode(),
        "white space around it that is not ASCII": b"\xc2\xa0" + line.encode(),
        "a hint with a zero": but(raw[:at] + domain + path + pack(["a\0b"])),
        "a hint with a bidirectional control": but(raw[:at] + domain + path + pack(["a\u202eb"])),
        "a hint with a private character": but(raw[:at] + domain + path + pack(["a\ue000b"])),
        "a hint with a line separator": but(raw[:at] + domain + path + pack(["a\u2028b"])),
        "a hint with a space that is not ASCII's": but(raw[:at] + domain + path + pack(["a\u00a0b"])),
        "nine hints": but(raw[:at] + domain + path + pack(["tcp:a:1"] * 9)),
        "a hint of 257 bytes": but(raw[:at] + domain + path + pack(["x" * 257])),
    }.items()]


def entries() -> list[Entry]:
    return [*frame_entries(), *_payloads(), *_keys(), *_records(), *_messages(), *_headers(), *_invitations()]
