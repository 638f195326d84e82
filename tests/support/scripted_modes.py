"""More conversations for the session vectors: padding modes, long bursts, and how streamed answers can end."""

from collections.abc import Callable

from tests.support.recorded import Side
from tests.support.scripted_sessions import NOW, RECORDED, Result, Talk, derived, login
from transport.connection import Event
from transport.initiator import Resumption
from transport.messages import Padding
from transport.mux import RequestReceived, ResumeRequested
from transport.primitives import sha256
from transport.stream import Progress
from transport.tickets import Ticket

TEXT = b"".join(b"word %d, " % index for index in range(40))


def _answering(talk: Talk, text: bytes, *, streamed: bool = False) -> Callable[[Event], None]:
    def answer(event: Event) -> None:
        if isinstance(event, RequestReceived):
            talk.answer(event.stream, text, streamed=streamed)
        if isinstance(event, ResumeRequested):
            talk.gateway.streams.answer(
                event.stream, 200, "text/plain", streamed=streamed, generation=event.generation, offset=event.offset
            )
            talk.gateway.streams.write(event.stream, text[event.offset :])
            talk.gateway.streams.end(event.stream, len(text), sha256(text))

    return answer


def _resumed(before: Talk, padding: Padding) -> tuple[Talk, Ticket, tuple[Side, Side]]:
    """A session resumed a minute later by the first ticket."""
    sides = Side(RECORDED, derived("edge of session 2")), Side(RECORDED, derived("gateway of session 2"))
    ticket = before.edge.tickets[0]
    return Talk(Resumption(ticket), before.store, sides, now=NOW + 60, padding=padding), ticket, sides


def _two(padding: Padding, what: str) -> list[Result]:
    """A request in each of two sessions in one mode, the second resumed."""
    first = login(padding)
    first.gateway_does = _answering(first, TEXT, streamed=True)
    first.request(1, b"prompt")
    first.run(0.75)
    second, ticket, sides = _resumed(first, padding)
    second.gateway_does = _answering(second, TEXT, streamed=True)
    second.request(2, b"prompt")
    second.run(0.75)
    assert first.got == second.got == {0: TEXT}
    return [first.vector(what) | {"began": int(first.start)},
            second.vector(f"{what}; resumed", ticket, sides) | {"began": int(second.start)}]


def off() -> list[Result]:
    return _two(Padding.OFF, "`pace(off)`: nothing is padded, nothing waits for a tick")


def constant_resumed() -> list[Result]:
    return _two(Padding.CONSTANT, "`pace(constant)`, a streamed answer")


def resume_early() -> list[Result]:
    """`resume` and a new request as early data."""
    first = login()
    first.settle()
    second, ticket, sides = _resumed(first, Padding.BUCKET)
    progress = Progress()
    progress.offset, progress.generation = 12, 1
    progress.digest.update(TEXT[:12])
    second.gateway_does = _answering(second, TEXT)
    second.edge.resume(b"\x01" * 16, progress)
    second.request(2, b"prompt")
    second.settle()
    assert second.got == {0: TEXT[12:], 1: TEXT}
    return [
        first.vector("the session whose ticket is used") | {"began": int(first.start)},
        second.vector("`resume` of 12 bytes and a request, both as early data", ticket, sides)
        | {"began": int(second.start), "answer": TEXT.hex()},
    ]


def long() -> list[Result]:
    """Answers whose bursts are of all the kinds that section 5 pads by."""
    talk = login()
    sizes = {0: 1_500, 1: 3_000, 2: 4_300, 3: 9_000, 4: 20_000, 5: 66_000}

    def answer(event: Event) -> None:
        if isinstance(event, RequestReceived):
            talk.answer(event.stream, bytes(sizes[event.stream]))

    talk.gateway_does = answer
    for stream in sizes:
        talk.request(stream + 1, b"prompt")
        talk.settle()
    assert {stream: len(text) for stream, text in talk.got.items()} == sizes
    return [talk.vector(f"answers of {', '.join(f'{size:,}' for size in sizes.values())} bytes, all zero")]


def parts_in_constant() -> list[Result]:
    """A refusal that is longer than a cell."""
    talk = login(Padding.CONSTANT)

    def refuse(event: Event) -> None:
        if isinstance(event, RequestReceived):
            talk.gateway.streams.refuse(event.stream, 403, "not_allowed", "\xe4" * 500, retryable=False)

    talk.gateway_does = refuse
    talk.request(1, b"prompt")
    talk.run(0.75)
    return [talk.vector("mode constant: a `refuse` of more than 1,000 bytes comes in parts, one a tick")]


def tails() -> list[Result]:
    """Two streamed answers side by side: one is refused behind its head, the other cancelled; both have tails."""
    talk = login()
    for number in (1, 2):
        talk.request(number, b"prompt")
    talk.settle()
    streams = talk.gateway.streams
    for stream in (0, 1):
        streams.answer(stream, 200, "text/plain", streamed=True)
        streams.write(stream, TEXT[: 100 + 200 * stream])
    talk.run(0.15)
    streams.refuse(0, 502, "provider_garbled", "cut", retryable=False)
    talk.run(0.25)
    talk.edge.cancel(1)
    talk.run(0.35)
    talk.run(6.0)
    _tail(talk, behind=0.35)
    return [talk.vector(
        "two streamed answers, one cell in turn; one is refused, the other cancelled; both end on the ladder. What"
        " comes behind 0.35 s is one flight, whatever its ticks were"
    )]


def _tail(talk: Talk, behind: float) -> None:
    late = [flight for flight in talk.flights if flight["at"] > behind]
    assert {flight["from"] for flight in late} == {"gateway"}
    talk.flights = [flight for flight in talk.flights if flight["at"] <= behind]
    talk.flights.append({"from": "gateway", "bytes": "".join(flight["bytes"] for flight in late)})


def rekey_in_cell() -> list[Result]:
    """A streamed answer after 15 minutes: `rekey` rides in its first cell."""
    talk = login()
    talk.settle()
    talk.now = NOW + 899.95
    talk.request(1, b"prompt")
    talk.settle()
    talk.gateway.streams.answer(0, 200, "text/plain", streamed=True)
    for before, tick in ((899.95, 900.0), (900.05, 900.1)):
        talk.gateway.streams.write(0, TEXT[:20])
        talk.settle(NOW + before)
        talk.settle(NOW + tick)
    assert talk.got == {0: TEXT[:20] * 2}
    return [talk.vector("at 900 s a cell of 128 bytes holds `answer`, `data` and `rekey`; the answer goes on")]


MODES: dict[str, Callable[[], list[Result]]] = {
    "off": off, "constant, resumed": constant_resumed, "resume as early data": resume_early, "long answers": long,
    "parts in constant": parts_in_constant, "tails": tails, "rekey in a cell": rekey_in_cell,
}
