"""Records under a wire that alters, drops, repeats, swaps and cuts: up to the damage, what comes out went in."""

import hashlib
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.support.seal_log import SealLog
from transport import records
from transport.connection import SILENCE_S
from transport.errors import LocalMisuse, ProtocolViolation
from transport.messages import DATA_MAX, AnswerData, Message, Ping, encode
from transport.noise import RESUMPTION_SUITE, CipherState
from transport.records import RECORD_MAX, RecordOpener, RecordSealer

sizes = st.sampled_from([1, 30, 500, 4_000, DATA_MAX])


class RecordsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.log = SealLog()
        self.log.start()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(records, "REKEY_BYTES", 80_000)  # often, yet above the floor that a receiver insists on
        self.now, self.made = 1_000.0, 0
        key = hashlib.sha256(b"key").digest()
        self.sealer = RecordSealer(CipherState(RESUMPTION_SUITE, key), self.now)
        self.opener = RecordOpener(CipherState(RESUMPTION_SUITE, key), self.now)
        self.wire: list[bytes] = []  # records under way
        self.sent: list[Message] = []
        self.came: list[Message] = []
        self.bent = False  # what is on the wire is not what was sent
        self.dead = False

    def teardown(self) -> None:
        self.log.stop()
        self.patch.undo()

    @rule(lengths=st.lists(sizes, min_size=1, max_size=6), control=st.booleans())
    def seal(self, lengths: list[int], control: bool) -> None:
        messages: list[Message] = []
        for length in lengths:
            self.made += 1
            messages.append(Ping() if control else AnswerData(0, self.made, bytes([self.made % 251]) * length))
        burst = self.sealer.seal_burst([encode(message) for message in messages], self.now, control=control)
        while burst:
            length = 2 + int.from_bytes(burst[:2], "big")
            self.wire.append(burst[:length])
            burst = burst[length:]
        self.sent += messages

    @rule(seconds=st.sampled_from([0.1, 5.0, records.REKEY_SECONDS]))
    def wait(self, seconds: float) -> None:
        if seconds > SILENCE_S:  # no link lasts that hold bytes back for longer
            self.deliver_all()
        self.now += seconds

    def deliver_all(self) -> None:
        flight, self.wire = b"".join(self.wire), []
        self.feed(flight)

    @rule(data=st.data())
    def deliver(self, data: Any) -> None:
        if not self.wire:
            return
        count = data.draw(st.integers(1, len(self.wire)))
        flight, self.wire = b"".join(self.wire[:count]), self.wire[count:]
        cuts = sorted(data.draw(st.lists(st.integers(0, len(flight)), max_size=3)))
        for start, end in zip([0, *cuts], [*cuts, len(flight)], strict=True):
            self.feed(flight[start:end])

    def feed(self, data: bytes) -> None:
        if self.dead:
            with pytest.raises(LocalMisuse):
                self.opener.next_messages(self.now)
            return
        self.opener.feed(data)
        try:
            while (messages := self.opener.next_messages(self.now)) is not None:
                self.came += messages
        except LocalMisuse:
            raise
        except ProtocolViolation:
            assert self.bent, "an honest wire never fails"
            self.dead = True

    @rule(data=st.data())
    def bend(self, data: Any) -> None:
        if not self.wire:
            return
        at = data.draw(st.integers(0, len(self.wire) - 1))
        how = data.draw(st.sampled_from(["flip", "drop", "repeat", "swap", "cut", "insert"]))
        before = list(self.wire)
        record = bytearray(self.wire[at])
        where = data.draw(st.integers(0, len(record) - 1))
        if how == "flip":
            record[where] ^= 1 << data.draw(st.integers(0, 7))
            self.wire[at] = bytes(record)
        elif how == "drop":
            del self.wire[at]
        elif how == "repeat":
            self.wire.insert(at, self.wire[at])
        elif how == "swap":
            self.wire.append(self.wire.pop(at))
        elif how == "cut":
            self.wire[at] = bytes(record[:where])
        elif how == "insert":
            self.wire.insert(at, data.draw(st.binary(min_size=1, max_size=40)))
        self.wire = [record for record in self.wire if record]
        self.bent = self.bent or before != self.wire

    @invariant()
    def only_what_was_sent_in_its_order(self) -> None:
        assert self.came == self.sent[: len(self.came)]
        assert self.bent or self.wire or len(self.came) == len(self.sent)

    @invariant()
    def memory_is_bounded_and_no_nonce_repeats(self) -> None:
        assert self.dead or self.opener.buffered <= RECORD_MAX + 2
        assert self.log.repeats == 0


TestRecordsMachine = RecordsMachine.TestCase
TestRecordsMachine.settings = settings(stateful_step_count=30)
