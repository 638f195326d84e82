"""Typed messages inside records, their encoding, and every size limit. docs/SPEC.md section 6 is the normative text.

A message is a MessagePack array whose first element is its type number. The encoding is canonical: what does not come
out byte for byte when encoded again is refused, so duplicate or non-minimal forms have no second meaning.
"""

import hashlib
from enum import Enum
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from transport.errors import BadInput, ProtocolViolation

RECORD_PLAINTEXT_MAX: Final = 16_384
MESSAGE_MAX: Final = RECORD_PLAINTEXT_MAX - 2  # a message has a 2-byte length in its record
DATA_MAX: Final = MESSAGE_MAX - 32  # room for the type, stream and offset around the bytes
HEADER_MAX: Final = 2_048
REQUEST_BODY_MAX: Final = 1 << 20
STREAMS_MAX: Final = 32  # open at once on one session
SPANS_MAX: Final = 32  # in one message
CREDIT_MAX: Final = (1 << 31) - 1
REQUEST_LIFETIME_MAX_S: Final = 7 * 24 * 3600

StreamId = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
Offset = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]
Bytes16 = Annotated[bytes, Meta(min_length=16, max_length=16)]
Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Bytes68 = Annotated[bytes, Meta(min_length=68, max_length=68)]
PublicArea = Annotated[bytes, Meta(min_length=1, max_length=256)]
Data = Annotated[bytes, Meta(min_length=1, max_length=DATA_MAX)]
Certificate = Annotated[bytes, Meta(min_length=1, max_length=2_048)]
Chain = Annotated[list[Certificate], Meta(min_length=1, max_length=3)]
SpiffeText = Annotated[str, Meta(max_length=2_048)]
Code = Annotated[str, Meta(min_length=1, max_length=48, pattern=r"^[a-z][a-z0-9_]*\Z")]
Label = Annotated[str, Meta(max_length=128)]
Status = Annotated[int, Meta(ge=100, le=599)]
Hex16 = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
Hex32 = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]


class RequestHeader(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a request is about. Encoded once by the edge and kept verbatim, so that a resend is identical.

    `expires_at` is in unix seconds, at most 7 days ahead; `traceparent` is W3C Trace Context, or empty.
    """

    method: Annotated[str, Meta(pattern=r"^[A-Z]{3,8}\Z")]
    route: Annotated[str, Meta(pattern=r"^/[A-Za-z0-9/._-]{1,127}\Z")]
    content_type: Label
    traceparent: Annotated[str, Meta(max_length=55)]
    body_length: Annotated[int, Meta(ge=0, le=REQUEST_BODY_MAX)]
    expires_at: Annotated[int, Meta(ge=0, le=1 << 40)]


class SpanRecord(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One finished span. Times in milliseconds since the epoch; `parent_id` may be empty."""

    trace_id: Hex32
    span_id: Hex16
    parent_id: Annotated[str, Meta(pattern=r"^([0-9a-f]{16})?\Z")]
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    role: Annotated[str, Meta(pattern=r"^(edge|hop|gateway|provider)\Z")]
    start_ms: Annotated[float, Meta(ge=0, le=1e15)]
    end_ms: Annotated[float, Meta(ge=0, le=1e15)]
    attributes: Annotated[
        dict[
            Annotated[str, Meta(max_length=64)],
            Annotated[str, Meta(max_length=128)] | int | Annotated[float, Meta(ge=-1e18, le=1e18)],
        ],
        Meta(max_length=16),
    ]


VERSION: Final = r"^([0-9]{1,3}(\.[0-9]{1,3}){2}([A-Za-z.+-][A-Za-z0-9.+-]*)?)?\Z"


class _Message(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all messages; each has a type number as its tag."""


class Open(_Message, frozen=True, tag=1):
    """Edge: begins a request. Its body follows in `Body` messages; `digest` = SHA-256(header || body)."""

    stream: StreamId
    request_id: Bytes16
    header: Annotated[bytes, Meta(min_length=1, max_length=HEADER_MAX)]
    digest: Bytes32


class Body(_Message, frozen=True, tag=2):
    """Edge: body bytes from `offset`, within credit."""

    stream: StreamId
    offset: Offset
    data: Data


class Credit(_Message, frozen=True, tag=3):
    """Either side: the peer may send data of this stream up to `limit` bytes in all (absolute, never falling)."""

    stream: StreamId
    limit: Annotated[int, Meta(ge=0, le=CREDIT_MAX)]


class Cancel(_Message, frozen=True, tag=4):
    """Edge: no more of this answer is wanted."""

    stream: StreamId


class Answer(_Message, frozen=True, tag=5):
    """Gateway: the answer begins. `streamed` tells text that comes as it is made from a whole body."""

    stream: StreamId
    generation: Annotated[int, Meta(ge=0, le=CREDIT_MAX)]
    status: Status
    content_type: Label
    streamed: bool


class AnswerData(_Message, frozen=True, tag=6):
    """Gateway: answer bytes from `offset`, within credit."""

    stream: StreamId
    offset: Offset
    data: Data


class End(_Message, frozen=True, tag=7):
    """Gateway: the answer is complete; length and SHA-256 of all its bytes. Only this makes an answer whole."""

    stream: StreamId
    length: Offset
    sha256: Bytes32


class Refuse(_Message, frozen=True, tag=8):
    """Gateway: the request ends without (the rest of) an answer. `message` is for a person."""

    stream: StreamId
    status: Status
    code: Code
    message: Annotated[str, Meta(max_length=512)]
    retryable: bool


class Welcome(_Message, frozen=True, tag=9):
    """Gateway: first message of every session that carries requests. `via` is the hop's SPIFFE ID, or empty."""

    epoch: Bytes16
    via: SpiffeText
    bundle_sequence: Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]


class Issued(_Message, frozen=True, tag=10):
    """Gateway: the SVID that a join or renew session asked for, and the trust bundle."""

    id: SpiffeText
    chain: Chain
    roots: Chain
    bundle_sequence: Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]
    enrolment: Annotated[int, Meta(ge=1, le=(1 << 53) - 1)]


class Spans(_Message, frozen=True, tag=11):
    """Edge: its own spans of a settled request."""

    spans: Annotated[list[SpanRecord], Meta(min_length=1, max_length=SPANS_MAX)]


class Rekey(_Message, frozen=True, tag=12):
    """Either side, last in its record: the next record of this direction is under the next key."""


class Close(_Message, frozen=True, tag=13):
    """Either side: an orderly end. End of file without it is a lost link, never an end of data."""

    code: Code


class Resume(_Message, frozen=True, tag=14):
    """Edge: asks for the answer of an earlier request from `offset` on, as far as it has it of that generation."""

    stream: StreamId
    request_id: Bytes16
    generation: Annotated[int, Meta(ge=0, le=CREDIT_MAX)]
    offset: Offset


class Ack(_Message, frozen=True, tag=15):
    """Edge: the answer up to `offset` is on its stable storage, or will never be asked for again. Cumulative."""

    request_id: Bytes16
    offset: Offset


class Ping(_Message, frozen=True, tag=16):
    """Either side, on an idle link; answered by `Pong`."""


class Pong(_Message, frozen=True, tag=17):
    """The answer to `Ping`."""


class Padding(Enum):
    """How much of sizes and times a session hides; `transport.pacing` says how, and what it costs."""

    OFF = "off"
    BUCKET = "bucket"
    CONSTANT = "constant"


class Pace(_Message, frozen=True, tag=18):
    """Edge, as its first message only: the padding mode of both directions from here on."""

    mode: Padding


class Part(_Message, frozen=True, tag=19):
    """Either side: a piece of an encoded message that is too long for a cell; `more` pieces follow, or it is whole."""

    more: bool
    data: Data


class Posture(_Message, frozen=True, tag=20):
    """Edge: what it says of its own state; holds until it says otherwise. Nobody has checked it."""

    disk: Literal["encrypted", "not encrypted", "unknown"]  # under the home
    tpm: Literal["present", "absent", "unknown"]
    version: Annotated[str, Meta(max_length=40, pattern=VERSION)]  # ours


class Held(_Message, frozen=True, tag=21):
    """Edge: the sequence number of the revocation list it holds, 0 if none; a newer one is wanted."""

    sequence: Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]


class Revocations(_Message, frozen=True, tag=22):
    """Gateway: a signed revocation list, as `transport.identity.revocation` reads it."""

    data: Annotated[bytes, Meta(min_length=1, max_length=12_000)]


class Attest(_Message, frozen=True, tag=23):
    """Edge, behind record 0 of a join that says so: which TPM its device key lies in. Areas are TPMT_PUBLIC."""

    ek_certificate: Annotated[bytes, Meta(max_length=2_048)]  # DER; empty if the TPM holds none
    ek_public: PublicArea
    key_public: PublicArea


class Challenge(_Message, frozen=True, tag=24):
    """Gateway: what only the TPM of `Attest` can decrypt, and only if that key lies in it. Insides of the TPM2B."""

    credential: Bytes68  # TPM2B_ID_OBJECT
    secret: Bytes68  # TPM2B_ENCRYPTED_SECRET, to a P-256 key


class Proof(_Message, frozen=True, tag=25):
    """Edge: what `Challenge` held."""

    secret: Bytes32


Message = (
    Open
    | Body
    | Credit
    | Cancel
    | Answer
    | AnswerData
    | End
    | Refuse
    | Welcome
    | Issued
    | Spans
    | Rekey
    | Close
    | Resume
    | Ack
    | Ping
    | Pong
    | Pace
    | Part
    | Posture
    | Held
    | Revocations
    | Attest
    | Challenge
    | Proof
)
# Messages that show nothing but flow control; a burst of only these is padded to 64 bytes.
CONTROL: Final = (Credit, Rekey, Ack, Ping, Pong, Held)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)
_header_decoder = msgspec.msgpack.Decoder(RequestHeader)
T = TypeVar("T")


def encode(message: Message) -> bytes:
    """At most MESSAGE_MAX bytes; raises BadInput for a message the peer would have to refuse as too long."""
    data = _encoder.encode(message)
    if len(data) > MESSAGE_MAX:
        raise BadInput("message is too long for a record")
    return data


def decode(data: bytes) -> Message:
    """Raises ProtocolViolation for anything but the canonical encoding of a known message within its limits."""
    message: Message = decode_canonical(_decoder, data, MESSAGE_MAX)
    return message


def decode_canonical(decoder: "msgspec.msgpack.Decoder[T]", data: bytes, limit: int) -> T:
    """Strict decoding: bounded, no unknown fields, and byte for byte what an encoder of ours would have written."""
    if len(data) > limit:
        raise ProtocolViolation("message is too long")
    try:
        value = decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise ProtocolViolation("message does not decode") from None
    if _encoder.encode(value) != data:
        raise ProtocolViolation("message is not in canonical form")
    return value


def encode_header(header: RequestHeader) -> bytes:
    data = _encoder.encode(header)
    decode_header(data)  # an edge never sends what the gateway must refuse
    return data


def decode_header(data: bytes) -> RequestHeader:
    """Raises ProtocolViolation."""
    return decode_canonical(_header_decoder, data, HEADER_MAX)


def request_digest(header: bytes, body: bytes) -> bytes:
    """SHA-256(header || body); the header is self-delimiting and holds the body's length."""
    return hashlib.sha256(header + body).digest()
