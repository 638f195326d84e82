"""The pipe over GATT on a carrier that reorders, drops and invents: the right bytes or a lost link, never others."""

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from transport.errors import LinkLost, LocalMisuse, ProtocolViolation
from transport.links.gatt import GAP_S, QUEUE_MAX, STARVED_S, VALUE_MAX, WINDOW, GattPipe, Info

VALUE_SIZES = st.sampled_from([20, 182, 244, VALUE_MAX])


def pattern(size: int, seed: bytes) -> bytes:
    return hashlib.shake_128(seed).digest(size)


class End:
    """One pipe, what was given to it, what came out, and the values on their way from it."""

    def __init__(self, name: str, value_size: int, credit: int, peer_credit: int, now: float) -> None:
        self.name, self.pipe = name, GattPipe(value_size, credit, peer_credit, now)
        self.sent, self.got = bytearray(), bytearray()
        self.wire: list[bytes] = []
        self.failure: LinkLost | ProtocolViolation | None = None
        self.ending: str | None = None

    def pump(self, now: float, most: int = 1 << 30) -> bool:
        moved = False
        while not self.failure and most and (value := self.pipe.next_value(now)) is not None:
            self.wire.append(value)
            moved, most = True, most - 1
        return moved

    def take(self, value: bytes, now: float) -> None:
        if not self.failure:
            try:
                self.pipe.receive_value(value, now)
            except (LinkLost, ProtocolViolation) as error:
                self.failure = error

    def read(self, limit: int = 1 << 20) -> bool:
        data = self.pipe.read(limit)
        assert len(data) <= limit
        self.got += data
        return bool(data)


class PipeMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.central = End("central", 495, WINDOW, 0, self.now)
        self.peripheral = End("peripheral", 182, 0, WINDOW, self.now)
        self.ends = [self.central, self.peripheral]
        self.lost = False  # a value has not come, or not in time: from now on a lost link is an honest answer
        self.hostile = False  # a value came that was never sent: other bytes may come, for the session to refuse

    def other(self, end: End) -> End:
        return self.ends[1 - self.ends.index(end)]

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for end in self.ends:
            if not end.failure and (at := end.pipe.next_deadline()) is not None and at <= self.now:
                try:
                    end.pipe.handle_time(self.now)
                except LinkLost as error:
                    end.failure = error
                    assert self.lost or self.hostile, "a carrier that only reorders loses no link"

    def deliver(self, end: End, at: int) -> None:
        other = self.other(end)
        other.take(end.wire.pop(at), self.now)
        if isinstance(other.failure, ProtocolViolation):
            assert self.hostile, "loss and reordering are nobody's fault"

    def settle(self) -> None:
        """Everything arrives, and is read."""
        moved = True
        while moved:
            moved = False
            for end in self.ends:
                moved |= end.pump(self.now)
                while end.wire:
                    self.deliver(end, 0)
                    moved = True
                moved |= end.read()

    ends_ = st.sampled_from([0, 1])

    @rule(which=ends_, size=st.sampled_from([1, 19, 494, 495, 4_000, 30_000]))
    def send(self, which: int, size: int) -> None:
        end = self.ends[which]
        if not end.ending and not end.failure and end.pipe.buffered + size <= QUEUE_MAX:
            data = pattern(size, b"%d %d" % (which, len(end.sent)))
            end.pipe.send(data)
            end.sent += data

    @rule(which=ends_, most=st.integers(1, 40))
    def pump(self, which: int, most: int) -> None:
        self.ends[which].pump(self.now, most)

    @rule(which=ends_, data=st.data(), count=st.integers(1, 12))
    def arrive_in_some_order(self, which: int, data: Any, count: int) -> None:
        end = self.ends[which]
        for _ in range(min(count, len(end.wire))):
            self.deliver(end, data.draw(st.integers(0, len(end.wire) - 1)))

    @rule(which=ends_, limit=st.sampled_from([1, 500, 5_000, 1 << 20]))
    def read(self, which: int, limit: int) -> None:
        if not self.ends[which].ending:
            self.ends[which].read(limit)

    @rule(seconds=st.sampled_from([0.01, 0.5, 1.0, GAP_S, STARVED_S]))
    def wait(self, seconds: float) -> None:
        if not (self.lost or self.hostile):  # an honest carrier and reader are never that slow
            self.settle()
        elif any(end.wire for end in self.ends):
            self.lost = True
        self.advance(seconds)

    @rule(which=ends_, reason=st.sampled_from(["done", "idle", "error"]))
    def end(self, which: int, reason: Any) -> None:
        end = self.ends[which]
        if not end.ending:
            end.ending = reason
            end.pipe.end(reason)

    @precondition(lambda self: any(end.wire for end in self.ends))
    @rule(data=st.data())
    def drop(self, data: Any) -> None:
        wire = data.draw(st.sampled_from([end.wire for end in self.ends if end.wire]))
        del wire[data.draw(st.integers(0, len(wire) - 1))]
        self.lost = True

    @rule(which=ends_, value=st.one_of(
        st.binary(max_size=12), st.binary(min_size=490, max_size=520), st.binary(min_size=8, max_size=8).map(
            lambda rest: b"\x80" + rest), st.tuples(st.integers(0, 127), st.binary(min_size=1, max_size=3)).map(
            lambda both: bytes([both[0]]) + both[1]),
    ))
    def invent(self, which: int, value: bytes) -> None:
        self.hostile = True
        self.ends[which].take(value, self.now)

    @invariant()
    def only_what_was_sent_in_its_order(self) -> None:
        for end in self.ends:
            assert self.hostile or bytes(end.got) == bytes(self.other(end).sent[: len(end.got)])

    @invariant()
    def memory_is_bounded(self) -> None:
        for end in self.ends:
            inside = end.pipe._in
            assert len(inside.ready) + len(inside._held) <= WINDOW
            assert len(inside._grants) <= 4
            assert end.pipe.buffered <= QUEUE_MAX

    @invariant()
    def an_end_comes_after_everything(self) -> None:
        for end in self.ends:
            other = self.other(end)
            if end.pipe.ended == "done" and not self.hostile and not end.ending and other.ending == "done":
                end.read()
                assert end.got == other.sent

    def teardown(self) -> None:
        """Whatever happened: with a carrier that is good again, all bytes come, or one end knows that they do not."""
        for end in self.ends:
            if not end.failure and not end.ending and end.pipe.buffered < QUEUE_MAX:
                end.pipe.send(b"x")
                end.sent += b"x"
        for _ in range(100):
            self.settle()
            self.advance(0.5)
        if not self.hostile and not any(end.failure for end in self.ends):
            for end in self.ends:
                assert end.ending or self.other(end).ending not in (None, "done") or end.got == self.other(end).sent
            if any(end.ending for end in self.ends):
                assert all(end.pipe.finished for end in self.ends)
                assert all(end.pipe.next_deadline() is None for end in self.ends)
        if not self.lost and not self.hostile:
            assert not any(end.failure for end in self.ends)


TestPipeMachine = PipeMachine.TestCase
TestPipeMachine.settings = settings(stateful_step_count=40, max_examples=150, deadline=None)


def connected(value_size: int = VALUE_MAX) -> tuple[End, End]:
    return End("central", value_size, WINDOW, 0, 0.0), End("peripheral", value_size, 0, WINDOW, 0.0)


def carry(one: End, two: End, now: float) -> int:
    """In order and at once, read at once; the values that it took."""
    count, moved = 0, True
    while moved:
        moved = False
        for end, other in ((one, two), (two, one)):
            moved |= end.pump(now)
            while end.wire:
                other.take(end.wire.pop(0), now)
                count += 1
            other.read()
    return count


@given(size=st.integers(1, 60_000), value_size=VALUE_SIZES)
@settings(max_examples=40, deadline=None)
def test_a_transfer_fills_its_values(size: int, value_size: int) -> None:
    one, two = connected(value_size)
    data = pattern(size, b"t")
    one.pipe.send(data)
    values = carry(one, two, 0.0)
    assert two.got == data
    full = -(-size // (value_size - 1))
    assert values <= full + 1 + full // (WINDOW // 2) + 1  # data, the central's first grant, and a grant in 16


def test_small_writes_share_a_value() -> None:
    one, two = connected()
    for _ in range(494):
        one.pipe.send(b"a")
    assert carry(one, two, 0.0) == 2  # the first grant, and one of data
    assert two.got == b"a" * 494


@given(st.binary(max_size=8))
def test_info_is_decoded_strictly(value: bytes) -> None:
    try:
        info = Info.decode(value)
    except ProtocolViolation:
        return
    assert info.encode() == value


def test_info_survives_and_says_what_is_wrong() -> None:
    info = Info("hop", VALUE_MAX, WINDOW)
    assert Info.decode(info.encode()) == info and len(info.encode()) == 5
    assert Info.decode(Info("edge", 20, 1).encode()).role == "edge"
    good = info.encode()
    for bad, words in (
        (b"\x02" + good[1:], "version"), (good + b"\0", "length"), (good[:1] + b"\x03" + good[2:], "bounds"),
        (good[:2] + b"\0\x13" + good[4:], "bounds"), (good[:4] + b"\x21", "bounds"), (good[:4] + b"\0", "bounds"),
    ):
        with pytest.raises(ProtocolViolation, match=words):
            Info.decode(bad)


def test_a_missing_value_is_a_lost_link_after_two_seconds() -> None:
    one, two = connected()
    one.pipe.send(bytes(2_000))
    one.pump(0.0)
    del one.wire[2]
    while one.wire:
        two.take(one.wire.pop(), 1.0)
    assert two.pipe.next_deadline() == 1.0 + GAP_S
    two.pipe.handle_time(1.0 + GAP_S - 0.001)
    with pytest.raises(LinkLost, match="lost a part"):
        two.pipe.handle_time(1.0 + GAP_S)


def test_each_gap_has_its_own_two_seconds() -> None:
    one, two = connected()
    one.pipe.send(bytes(6 * 494))
    one.pump(0.0)
    values = one.wire[1:]  # behind the central's first grant
    for at, number in ((0.0, 1), (1.0, 4), (1.5, 0), (3.0, 5)):  # 2 is missing from 1.5 on, whatever else comes
        two.take(values[number], at)
        if at < 1.5:
            assert two.pipe.next_deadline() == GAP_S
    assert two.pipe.next_deadline() == 1.5 + GAP_S
    two.take(values[2], 3.1)
    two.take(values[3], 3.1)
    assert two.pipe.next_deadline() is None and len(two.pipe.read(10_000)) == 6 * 494


def test_the_loss_of_the_last_value_shows_too() -> None:
    one, two = connected()
    one.pipe.send(bytes(100))
    one.pump(0.0)
    one.wire.clear()
    at = one.pipe.next_deadline()
    assert at == 1.0
    one.pipe.handle_time(at)
    one.pump(at)
    two.take(one.wire.pop(), at)
    with pytest.raises(LinkLost):
        two.pipe.handle_time(at + GAP_S)


def test_a_peer_that_grants_nothing_is_given_up() -> None:
    one, two = connected()
    one.pipe.send(bytes(WINDOW * 494 + 1))
    one.pump(5.0)
    for value in one.wire:
        two.take(value, 5.0)  # and never reads
    assert two.pipe.next_value(5.0) is None
    one.pipe.handle_time(5.0 + STARVED_S - 0.001)
    with pytest.raises(LinkLost, match="takes nothing"):
        one.pipe.handle_time(5.0 + STARVED_S)


def test_a_lost_grant_is_said_again() -> None:
    one, two = connected()
    one.pipe.send(bytes(60 * 494))
    one.pump(0.0)
    for value in one.wire:
        two.take(value, 0.0)
    one.wire.clear()
    two.read()
    two.pump(0.0)
    assert len(two.wire) == 1
    two.wire.clear()
    at = two.pipe.next_deadline()
    assert at == 1.0
    two.pipe.handle_time(at)
    carry(one, two, at)
    assert len(two.got) == 60 * 494


def test_what_is_due_does_not_ring_again_before_it_has_left() -> None:
    """The carrier may be full: a driver would call in a circle."""
    one, two = connected()
    carry(one, two, 0.0)
    one.pipe.send(b"a")
    one.pump(0.0)
    one.wire.clear()
    one.pipe.handle_time(1.0)
    assert one.pipe.next_deadline() is None
    one.pump(5.0)
    one.pipe.end("done")
    one.pump(5.0)
    assert one.pipe.next_deadline() == 6.0
    one.pipe.handle_time(6.0)
    assert one.pipe.next_deadline() is None


def test_a_quiet_peer_is_not_asked_for_ever() -> None:
    one, two = connected()
    carry(one, two, 0.0)
    said, now = 0, 0.0
    while (at := one.pipe.next_deadline()) is not None:
        now = at
        one.pipe.handle_time(now)
        said += one.pump(now)
        one.wire.clear()
    assert 25 <= said <= 32 and now <= STARVED_S + 2


@pytest.mark.parametrize(("value", "words"), [
    (b"", "empty"), (bytes(VALUE_MAX + 1), "too long"), (b"\x00", "no data"), (b"\x20x", "not granted"),
    (b"\x7fx", "twice"), (b"\x82", "unknown"), (b"\xff" * 9, "unknown"), (b"\x80" + bytes(7), "unknown"),
    (b"\x80" + bytes(9), "unknown"), (b"\x81" + bytes(6), "unknown"), (b"\x81\x05" + bytes(4), "unknown"),
    (b"\x80" + b"\x00\x00\x00\x21" + bytes(4), "window"), (b"\x80" + bytes(4) + b"\x00\x00\x00\x21", "granted"),
    (b"\x81\x00\x00\x00\x00\x21", "granted"),
])
def test_what_a_peer_may_not_send(value: bytes, words: str) -> None:
    pipe = GattPipe(VALUE_MAX, 0, WINDOW, 0.0)
    with pytest.raises(ProtocolViolation, match=words):
        pipe.receive_value(value, 0.0)


def test_what_a_peer_may_not_send_later() -> None:
    def fresh() -> GattPipe:
        pipe = GattPipe(VALUE_MAX, 0, WINDOW, 0.0)
        pipe.receive_value(b"\x00a", 0.0)
        return pipe

    for later in (
        [b"\x00a"], [b"\x02c", b"\x02c"], [b"\x21x"], [b"\x81\x00\x00\x00\x00\x00"],
        [b"\x81\x00\x00\x00\x00\x01", b"\x01b"],
        [b"\x81\x00\x00\x00\x00\x02", b"\x81\x01\x00\x00\x00\x02"],
        [b"\x81\x00\x00\x00\x00\x02", b"\x80\x00\x00\x00\x00\x00\x00\x00\x03"],
    ):
        pipe = fresh()
        for value in later[:-1]:
            pipe.receive_value(value, 0.0)
        with pytest.raises(ProtocolViolation):
            pipe.receive_value(later[-1], 0.0)
        assert pipe.read(10) == b"a"  # what had come is right all the same


def test_M20_a_window_is_never_exceeded() -> None:
    one, _ = connected()
    one.pipe.send(bytes(QUEUE_MAX))
    with pytest.raises(LocalMisuse):
        one.pipe.send(b"x")
    one.pump(0.0)
    assert sum(value[0] < 0x80 for value in one.wire) == WINDOW


def test_an_end_that_is_lost_is_said_again_and_answered() -> None:
    one, two = connected()
    one.pipe.send(b"last words")
    one.pipe.end("done")
    one.pump(0.0)
    assert one.wire.pop()[0] == 0x81
    for value in one.wire:
        two.take(value, 0.0)
    one.wire.clear()
    assert two.pipe.ended is None
    one.pipe.handle_time(1.0)
    one.pump(1.0)
    two.take(one.wire.pop(), 1.0)
    assert two.pipe.ended == "done" and two.pipe.read(100) == b"last words"
    two.pump(1.0)
    two.wire.clear()  # the answer is lost as well
    one.pipe.handle_time(2.0)
    one.pump(2.0)
    assert carry(one, two, 2.0)
    assert one.pipe.finished and two.pipe.finished and one.pipe.next_deadline() is None


def test_an_old_grant_that_comes_late_takes_nothing_back() -> None:
    pipe = GattPipe(VALUE_MAX, 0, WINDOW, 0.0)
    for limit in (20, 5):
        pipe.receive_value(b"\x80" + limit.to_bytes(4, "big") + bytes(4), 0.0)
    pipe.send(bytes(20 * 494))
    assert sum(pipe.next_value(0.0) is not None for _ in range(21)) == 20


def test_an_end_that_closes_takes_what_still_comes_and_waits_for_no_part_of_it() -> None:
    one, two = connected()
    carry(one, two, 0.0)
    two.pipe.send(bytes(40 * 494))
    two.pump(0.0)
    for value in two.wire[:5]:
        one.take(value, 0.0)
    assert len(one.pipe.read(700)) == 700  # into the middle of a value
    one.pipe.end("done")
    for value in two.wire[6:]:  # one is lost
        one.take(value, 0.0)
    assert one.pipe.read(10_000) == b""
    assert one.pipe.next_deadline() is None  # no gap that matters
    one.pump(0.0)
    two.wire.clear()
    carry(one, two, 0.0)
    assert one.pipe.finished and two.pipe.finished and two.pipe.buffered == 0


def test_what_waits_is_dropped_when_the_peer_has_ended_as_well() -> None:
    one, two = connected()
    carry(one, two, 0.0)
    two.pipe.send(bytes(2_000))
    two.pump(0.0)
    two.wire.pop(1)
    one.pipe.send(bytes(QUEUE_MAX))
    one.pump(0.0)  # as far as it may
    one.pipe.end("done")
    two.pipe.end("limit")
    two.pump(0.0)
    for value in two.wire:
        one.take(value, 0.0)
    one.pump(0.0)
    assert one.pipe.finished and one.pipe.buffered == 0


def test_a_peer_in_the_middle_of_sending_can_go_on_to_hear_the_end() -> None:
    one, two = connected()
    carry(one, two, 0.0)
    two.pipe.send(bytes(40 * 494))
    two.pump(0.0)
    one.pipe.send(bytes(494 * (WINDOW + 1)))
    one.pump(0.0)
    one.pipe.end("done")  # has to wait for grants, as the peer does
    for end, other in ((two, one), (one, two)):
        while end.wire:
            other.take(end.wire.pop(0), 0.0)
    one.pump(0.0)
    assert one.wire[0][0] == 0x80  # what is not read any more is granted on all the same
    two.take(one.wire.pop(0), 0.0)
    two.pump(0.0)
    assert two.pipe.buffered == 0
    carry(one, two, 0.0)
    assert one.pipe.finished and len(two.got) == 494 * (WINDOW + 1)


@pytest.mark.parametrize("reason", ["idle", "limit", "shutdown", "error"])
def test_an_end_for_a_reason_does_not_wait_for_the_queue(reason: Any) -> None:
    one, two = connected()
    carry(one, two, 0.0)
    one.pipe.send(bytes(QUEUE_MAX))
    one.pump(0.0, most=3)
    one.pipe.end(reason)
    carry(one, two, 0.0)
    assert two.pipe.ended == reason and len(two.got) == 3 * 494 and one.pipe.finished and two.pipe.finished


def test_both_ends_may_close_at_once() -> None:
    one, two = connected()
    for end in (one, two):
        end.pipe.send(bytes(QUEUE_MAX))
        end.pipe.end("done")
    carry(one, two, 0.0)
    assert one.pipe.finished and two.pipe.finished and one.pipe.buffered == two.pipe.buffered == 0


def test_ends_that_cross_and_get_lost_are_found_again() -> None:
    one, two = connected()
    for end in (one, two):
        end.pipe.end("done")
        end.pump(0.0)
    one.wire.clear()
    one.take(two.wire.pop(), 0.1)
    two.wire.clear()
    assert one.pipe.finished and not two.pipe.finished
    two.pipe.handle_time(1.0)
    assert carry(one, two, 1.0) == 2 and two.pipe.finished  # asked, answered, and no more of it


def test_a_pipe_of_more_values_than_can_be_counted_stops() -> None:
    one, two = connected()
    near_end = 2**32 - 1 - 40
    for end in (one, two):
        end.pipe._in.came = end.pipe._in.promised = end.pipe._out.sent = near_end
        end.pipe._in._grants[0] = end.pipe._out.limit = near_end + 20
    one.pipe.send(bytes(50 * 494))
    carry(one, two, 0.0)
    assert len(two.got) == 40 * 494 and one.pipe._out.sent == 2**32 - 1
    with pytest.raises(LinkLost):
        one.pipe.handle_time(STARVED_S)
