"""The phone page's pipe beside the one in Python: the same calls give the same values, bytes, states and refusals.

The property suite of the pipe makes the schedules, with reordering, loss, invented values and every ending; each end's
calls are recorded and then done again by pipe.js in a real browser.
"""

import asyncio
import base64
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from tests.properties import test_gatt_pipe as suite
from tests.support.browser import CHROMIUM, Tab, browser
from transport.errors import LinkLost, LocalMisuse, ProtocolViolation
from transport.links.gatt import QUEUE_MAX, VALUE_MAX, WINDOW, GattPipe, Info

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

SOURCE = Path(__file__).parents[2] / "relay" / "hop" / "web" / "pipe.js"
REPLAY = """(async () => {
  const { makePipe, readInfo } = await import(%s);
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const text = (value) => btoa(String.fromCharCode(...value));
  const kinds = { RangeError: "ProtocolViolation", Error: "LinkLost", TypeError: "LocalMisuse" };
  const tried = (work) => { try { return work(); } catch (error) { return ["refused", kinds[error.name]]; } };
  window.replay = ([first, ...calls]) => {
    const pipe = makePipe(...first), calling = {
      send: (data) => { pipe.send(bytes(data)); return null; },
      end: (reason) => { pipe.end(["done", "idle", "limit", "shutdown", "error"].indexOf(reason)); return null; },
      next_value: (now) => { const value = pipe.next(now); return value && text(value); },
      receive_value: (value, now) => { pipe.take(bytes(value), now); return null; },
      read: () => text(pipe.read()),
      handle_time: (now) => { pipe.tick(now); return null; },
    };
    return calls.map(([name, ...given]) => {
      const outcome = tried(() => calling[name](...given));
      return [outcome, pipe.buffered(), pipe.ended(), Boolean(pipe.finished())];
    });
  };
  window.info = (value) => tried(() => Object.values(readInfo(bytes(value))));
})()"""


class Chromium:
    """A browser in a thread of its own, for tests that do not run in a loop."""

    def __init__(self, profile: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self._browser = browser(profile)
        self.tab: Tab = self.run(self._browser.__aenter__)
        source = "data:text/javascript;base64," + base64.b64encode(SOURCE.read_bytes()).decode()
        self.run(lambda: self.tab.run(REPLAY % json.dumps(source)))

    def run(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return asyncio.run_coroutine_threadsafe(work(), self.loop).result(120)

    def call(self, name: str, given: Any) -> Any:
        return self.run(lambda: self.tab.run(f"{name}({json.dumps(given)})"))

    def close(self) -> None:
        self.run(lambda: self._browser.__aexit__(None, None, None))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    made = Chromium(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


def packed(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes | bytearray) else value


class Recorded:
    """A pipe in Python that keeps each call, what came of it, and how the pipe stood then."""

    def __init__(self, value_size: int, credit: int, peer_credit: int, now: float) -> None:
        self.calls: list[Any] = [[value_size, credit, peer_credit, now]]
        self.results: list[Any] = []
        self._pipe, self._keeps = GattPipe(value_size, credit, peer_credit, now), True

    def __getattr__(self, name: str) -> Any:
        if name not in ("send", "end", "next_value", "receive_value", "read", "handle_time"):
            return getattr(self._pipe, name)

        def call(*given: Any) -> Any:
            pipe, outcome = self._pipe, None
            if name == "read":
                incoming = pipe._in
                self._keeps &= sum(map(len, incoming.ready)) - incoming._cut <= given[0]  # the page reads all
                self.calls.append([name])
            else:
                self.calls.append([name, *map(packed, given)])
            try:
                outcome = getattr(pipe, name)(*given)
                return outcome
            except (LinkLost, LocalMisuse, ProtocolViolation) as error:
                outcome = ["refused", type(error).__name__]
                raise
            finally:
                ended = pipe.ended is not None
                self.results.append([packed(outcome), pipe.buffered, ended, pipe.finished])
                if not self._keeps:
                    del self.calls[len(self.results):], self.results[-1]

        return call

    def compare(self, chromium: Chromium) -> None:
        for call, ours, theirs in zip(
            self.calls[1:], self.results, chromium.call("replay", self.calls), strict=True
        ):
            assert theirs == ours, (call, self.calls)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """Every pipe that the suite makes from now on."""
    made: list[Recorded] = []

    def make(*given: Any) -> Recorded:
        made.append(Recorded(*given))
        return made[-1]

    monkeypatch.setattr(suite, "GattPipe", make)
    return made


SCRIPTED = [  # but for the one that sets a pipe's counts from outside
    pytest.param(work, (mark.args[1] if mark else [()]), id=name) for name, work in vars(suite).items()
    if name.startswith("test_") and "info" not in name and "counted" not in name and not hasattr(work, "hypothesis")
    for mark in [next(iter(getattr(work, "pytestmark", [])), None)]
]


@pytest.mark.parametrize(("work", "rows"), SCRIPTED)
def test_what_is_asked_of_the_one_in_python_is_true_of_this_one(
    work: Callable[..., None], rows: list[Any], recorded: list[Recorded], chromium: Chromium
) -> None:
    for row in rows:
        work(*(row if isinstance(row, tuple) else (row,)))
    assert sum(len(pipe.results) for pipe in recorded) >= 1
    for pipe in recorded:
        pipe.compare(chromium)


def test_the_same_calls_give_the_same_whatever_the_radio_does(
    recorded: list[Recorded], chromium: Chromium
) -> None:
    calls = 0

    class BothPipes(suite.PipeMachine):
        @rule(which=suite.PipeMachine.ends_)
        def read(self, which: int) -> None:
            if not self.ends[which].ending:
                self.ends[which].read()

        def teardown(self) -> None:
            nonlocal calls
            super().teardown()
            for end in self.ends:
                end.pipe.compare(chromium)  # type: ignore[attr-defined]
                calls += len(end.pipe.results)  # type: ignore[attr-defined]
            recorded.clear()

    run_state_machine_as_test(
        BothPipes, settings=settings(stateful_step_count=40, max_examples=80, deadline=None)
    )
    assert calls > 10_000


@given(st.lists(st.one_of(
    st.binary(max_size=12), st.binary(min_size=490, max_size=500),
    st.tuples(st.integers(0, 40), st.binary(min_size=0, max_size=3)).map(lambda both: bytes([both[0]]) + both[1]),
    st.tuples(st.integers(0, 70), st.integers(0, 70)).map(
        lambda both: b"\x80" + both[0].to_bytes(4, "big") + both[1].to_bytes(4, "big")),
    st.tuples(st.integers(0, 6), st.integers(0, 40)).map(
        lambda both: bytes([0x81, both[0]]) + both[1].to_bytes(4, "big")),
), max_size=30))
@settings(max_examples=100, deadline=None)
def test_values_that_nobody_sent_are_judged_alike(chromium: Chromium, values: list[bytes]) -> None:
    pipe = Recorded(VALUE_MAX, 0, WINDOW, 0.0)
    pipe.send(bytes(60 * 494))
    for number, value in enumerate(values):
        try:
            pipe.receive_value(value, float(number))
        except ProtocolViolation:
            break
        pipe.read(1 << 20)
        while pipe.next_value(float(number)) is not None:
            pass
    pipe.compare(chromium)


def test_sequence_numbers_go_round_and_a_full_queue_is_refused(
    recorded: list[Recorded], chromium: Chromium
) -> None:
    one, two = suite.connected()
    for _ in range(4):
        one.pipe.send(bytes(60_000))
        suite.carry(one, two, 0.0)
    one.pipe.send(bytes(QUEUE_MAX))
    with pytest.raises(LocalMisuse):
        one.pipe.send(b"x")
    one.pipe.end("limit")
    with pytest.raises(LocalMisuse):
        one.pipe.send(b"x")
    suite.carry(one, two, 0.0)
    assert one.pipe.finished and two.pipe.ended == "limit" and len(two.got) == 240_000
    for pipe in recorded:
        pipe.compare(chromium)


@given(st.binary(max_size=7) | st.tuples(
    st.integers(0, 2), st.integers(0, 3), st.integers(0, 600), st.integers(0, 40)
).map(lambda parts: bytes([parts[0], parts[1], parts[2] >> 8, parts[2] & 255, parts[3]])))
@settings(max_examples=100, deadline=None)
def test_info_is_read_alike(chromium: Chromium, value: bytes) -> None:
    try:
        info = Info.decode(value)
    except ProtocolViolation:
        assert chromium.call("info", packed(value)) == ["refused", "ProtocolViolation"]
    else:
        assert chromium.call("info", packed(value)) == [{"hop": 1, "edge": 2}[info.role], info.value_size, info.credit]


def test_a_difference_would_be_seen(chromium: Chromium) -> None:
    pipe = Recorded(20, 1, 0, 0.0)
    pipe.send(b"a")
    pipe.next_value(0.0)
    pipe.results[-1][1] = 7
    with pytest.raises(AssertionError, match="next_value"):
        pipe.compare(chromium)
