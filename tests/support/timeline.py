"""A pair of connections under virtual time: what happens when is planned, and every record on the wire is noted."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from tests.support.connection_pair import Pair, make_pair
from transport.mux import AnswerBytes
from transport.pacing import TICK_S
from transport.primitives import sha256


@dataclass(frozen=True, order=True)
class Seen:
    """One record as a watcher at the hop sees it: seconds since the session stood, who sent it, bytes."""

    at: float
    sender: str
    size: int

    @property
    def tick(self) -> float:
        return self.at / TICK_S


def record_sizes(flight: bytes) -> list[int]:
    sizes = []
    while flight:
        sizes.append(2 + int.from_bytes(flight[:2], "big"))
        flight = flight[sizes[-1] :]
    return sizes


@dataclass
class Timeline:
    """Runs `pair`, whose edge takes every byte at once unless `reads` is off; `got` has (time, bytes) as they came."""

    pair: Pair
    reads: bool = True
    wire: list[Seen] = field(default_factory=list)
    got: dict[int, list[tuple[float, bytes]]] = field(default_factory=dict)
    _plan: list[tuple[float, int, Callable[[], object]]] = field(default_factory=list)
    _counted: int = 0

    def __post_init__(self) -> None:
        while self.pair.step():
            pass
        self.start = self.pair.now
        self._told = {"edge": len(self.pair.to_gateway), "gateway": len(self.pair.to_edge)}

    def at(self, seconds: float, act: Callable[[], object]) -> None:
        self._plan.append((self.start + seconds, len(self._plan), act))

    def run(self, seconds: float) -> None:
        """From wherever it is to `seconds` after the session began."""
        end = self.start + seconds
        self._plan.sort(key=lambda entry: entry[:2])
        self._settle()
        while True:
            times = [d for core in (self.pair.edge, self.pair.gateway) if (d := core.next_deadline()) is not None]
            times += [self._plan[0][0]] if self._plan else []
            if not times or (now := max(self.pair.now, min(times))) > end:
                break
            self.pair.now = now
            while self._plan and self._plan[0][0] <= now:
                self._plan.pop(0)[2]()
            for core in (self.pair.edge, self.pair.gateway):
                core.handle_time(now)
            self._settle()
        self.pair.now = end

    def _settle(self) -> None:
        moved = True
        while moved:
            moved = self.pair.step()
            self._note("edge", self.pair.to_gateway)
            self._note("gateway", self.pair.to_edge)
            for event in self.pair.edge_events[self._counted :]:
                if isinstance(event, AnswerBytes):
                    self.got.setdefault(event.stream, []).append((self.pair.now - self.start, event.data))
                    if self.reads:
                        self.pair.edge.consumed(event.stream, len(event.data))
            self._counted = len(self.pair.edge_events)

    def _note(self, sender: str, flights: list[bytes]) -> None:
        for flight in flights[self._told[sender] :]:
            at = round(self.pair.now - self.start, 6)
            self.wire += [Seen(at, sender, size) for size in record_sizes(flight)]
        self._told[sender] = len(flights)

    def bytes_of(self, stream: int) -> bytes:
        return b"".join(data for _, data in self.got.get(stream, []))

    def sent_by(self, sender: str) -> list[Seen]:
        return [seen for seen in self.wire if seen.sender == sender]


def stream_answer(line: Timeline, stream: int, begin: float, writes: list[tuple[float, bytes]], end: float) -> bytes:
    """Plans a streamed answer; returns all its bytes."""
    streams, whole = line.pair.gateway.streams, b"".join(data for _, data in writes)
    line.at(begin, lambda: streams.answer(stream, 200, "text/event-stream", streamed=True))
    for when, data in writes:
        line.at(when, partial(streams.write, stream, data))
    line.at(end, lambda: streams.end(stream, len(whole), sha256(whole)))
    return whole


def timeline(**options: object) -> Timeline:
    return Timeline(make_pair(**options))  # type: ignore[arg-type]
