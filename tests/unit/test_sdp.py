"""The question about a service's channel, and every answer to it."""

import struct
import uuid

import pytest
from bumble import core
from bumble.sdp import SDP_PDU, DataElement, SDP_ServiceSearchAttributeRequest
from hypothesis import given
from hypothesis import strategies as st

from transport.errors import ProtocolViolation
from transport.links import sdp
from transport.links.rfcomm import SERVICE

L2CAP, RFCOMM = core.BT_L2CAP_PROTOCOL_ID, core.BT_RFCOMM_PROTOCOL_ID


def protocols(channel: int, *, transport: core.UUID = RFCOMM) -> DataElement:
    return DataElement.sequence([
        DataElement.sequence([DataElement.uuid(L2CAP)]),
        DataElement.sequence([DataElement.uuid(transport), DataElement.unsigned_integer_8(channel)]),
    ])


def record(value: DataElement) -> DataElement:
    return DataElement.sequence([DataElement.unsigned_integer_16(4), value])


def answer(*records: DataElement, number: int = 7) -> bytes:
    lists = bytes(DataElement.sequence(records))
    body = struct.pack(">H", len(lists)) + lists + b"\0"
    return struct.pack(">BHH", 7, number, len(body)) + body


def test_the_question_as_another_reads_it() -> None:
    asked = SDP_PDU.from_bytes(sdp.question(SERVICE, 515))
    assert isinstance(asked, SDP_ServiceSearchAttributeRequest) and asked.transaction_id == 515
    assert [element.value for element in asked.service_search_pattern.value] == [core.UUID(SERVICE)]
    assert [element.value for element in asked.attribute_id_list.value] == [4]
    assert asked.maximum_attribute_byte_count == sdp.ANSWER_MAX and asked.continuation_state == b"\0"


@given(channel=st.integers(1, 30), before=st.integers(0, 2), wide=st.booleans())
def test_the_first_record_with_a_channel_counts(channel: int, before: int, wide: bool) -> None:
    others = [record(protocols(1, transport=core.UUID.from_16_bits(0x000F)))] * before
    value = protocols(channel, transport=core.UUID(str(uuid.UUID(int=(3 << 96) | 0x1000800000805F9B34FB)))
                      if wide else RFCOMM)
    assert sdp.channel(answer(*others, record(value), record(protocols(31 - channel))), 7) == channel


def test_alternatives_and_what_else_a_record_may_hold() -> None:
    odd = DataElement.sequence([DataElement.text_string(b"x" * 300), DataElement.nil(), DataElement.boolean(True)])
    assert sdp.channel(answer(record(DataElement.sequence([odd, protocols(5)]))), 7) == 5


@pytest.mark.parametrize("records", [
    [], [record(protocols(0))], [record(protocols(31))], [record(DataElement.sequence([DataElement.uuid(RFCOMM)]))],
    [record(DataElement.sequence([DataElement.sequence([DataElement.uuid(RFCOMM), DataElement.text_string(b"5")])]))],
], ids=["no record", "0", "31", "no number", "a text"])
def test_no_channel(records: list[DataElement]) -> None:
    assert sdp.channel(answer(*records), 7) is None


def nested(depth: int) -> DataElement:
    element = protocols(5)
    for _ in range(depth):
        element = DataElement.sequence([element])
    return element


@pytest.mark.parametrize("data", [
    b"", answer(record(protocols(5)))[:-1], answer(record(protocols(5)), number=8), b"\1" + answer()[1:],
    answer(record(protocols(5))) + b"x", answer(record(nested(9))), struct.pack(">BHHHB", 7, 7, 4, 1, 9) + b"\0",
    struct.pack(">BHHH", 7, 7, 5, 2) + b"\x35\7\0",
], ids=["nothing", "cut", "another's", "an error", "more", "too deep", "no list", "beyond its end"])
def test_garbled_answers(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        sdp.channel(data, 7)


@given(data=st.binary(max_size=80), at=st.integers(0, 60), to=st.integers(0, 255))
def test_no_answer_does_harm(data: bytes, at: int, to: int) -> None:
    bent = bytearray(answer(record(protocols(5))))
    bent[at % len(bent)] = to
    framed = struct.pack(">BHHH", 7, 7, len(data) + 3, len(data)) + data + b"\0"
    for text in (data, bytes(bent), framed):
        try:
            found = sdp.channel(text, 7)
        except ProtocolViolation:
            continue
        assert found is None or 1 <= found <= 30
