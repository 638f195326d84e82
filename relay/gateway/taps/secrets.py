"""Cuts secrets out of answers: provider keys, tokens and private keys give way to a marker.

Streamed answers are read event by event; a secret that is split over several events' deltas is found, too. An event
goes on as soon as no text in it could still become a secret. What holds none goes on byte for byte; an event with a
finding is written anew. This is against accidents, not against a model that was told to write its secrets backwards.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from relay.gateway.pipeline import RequestContext
from relay.gateway.taps.redaction import Redaction
from relay.gateway.taps.shapes import Shapes
from relay.gateway.upstream.formats import CHAT

QUEUE_MAX: Final = 1 << 18  # bytes of events that wait for one of them; beyond, what is undecided is cut
_NAMES: Final = frozenset({"role", "type", "id", "name", "index", "object", "call_id", "item_id"})  # never split


@dataclass
class _Piece:
    """One text of an event: bytes of `redaction`'s text from `at`, and where it stands in the event."""

    redaction: Redaction
    at: int
    text: bytes
    holder: Any = None
    key: Any = None

    @property
    def settled(self) -> bool:
        return self.redaction.settled >= self.at + len(self.text)


@dataclass
class _Line:
    raw: bytes
    event: Any = None
    changed: bool = False
    alike: bool = False  # an event that is not read
    pieces: list[_Piece] = field(default_factory=list)


def secret_filter(keys: Callable[[], Sequence[bytes]]) -> Callable[[RequestContext], "SecretFilter"]:
    """Makes the tap of each request. The gateway's own `keys`, and those before them, are found by value."""
    known, shapes = tuple(keys()), Shapes(keys())

    def made(context: RequestContext) -> SecretFilter:
        nonlocal known, shapes
        if known != (current := tuple(keys())):
            known, shapes = current, Shapes((*current, *known))
        return SecretFilter(context, shapes)

    return made


class SecretFilter:
    """A tap; what is held back follows from the type of the answer. Counts its findings by kind in the context.

    Holds a JSON answer until its end (upstreams read them whole anyway, up to their limit), of a stream the events
    behind the first undecided text, of anything else up to `shapes.WINDOW` bytes.
    """

    def __init__(self, context: RequestContext, shapes: Shapes) -> None:
        target = context.target
        self._ends = (CHAT if target is None else target.format).ends
        self._context = context
        self._shapes = shapes
        self._held = b""  # a JSON body, of a stream the line that has not ended, of plain text what is undecided
        self._plain, self._at = self._redaction(), 0
        self._lines: deque[_Line] = deque()
        self._waiting = 0
        self._texts: dict[tuple[Any, ...], tuple[Redaction, list[int]]] = {}
        self._like: tuple[bytes, bytes, tuple[Any, ...]] | None = None  # an event around its text, and whose that is

    def feed(self, data: bytes) -> bytes:
        if self._context.answer_type == "application/json":
            self._held += data
            return b""
        if self._context.answer_type == "text/event-stream":
            *lines, self._held = (self._held + data).split(b"\n")
            return b"".join([self._line(line + b"\n") for line in lines])
        self._plain.feed(data)
        return self._settled(data)

    def finish(self) -> bytes:
        if self._context.answer_type == "application/json":
            return self._json(self._held)
        if self._context.answer_type == "text/event-stream":
            if self._held:
                self._take(self._held)
            self._end_texts()
            return self._released()
        self._plain.finish()
        return self._settled(b"")

    def _settled(self, data: bytes) -> bytes:
        """What is decided of plain text, with `data` the latest of it."""
        at, self._at = self._at, self._plain.settled
        held = self._held + data
        piece, self._held = held[:self._at - at], held[self._at - at:]
        shown = self._plain.shown(piece, at)
        self._plain.forget(self._at)
        return shown

    def _json(self, body: bytes) -> bytes:
        if not self._suspicious(body):
            return body
        try:
            whole = [msgspec.json.decode(body)]
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return self._once(body)
        if not self._walk(whole, set()):
            return body
        _forget_tokens(whole[0])
        return msgspec.json.encode(whole[0])

    def _line(self, line: bytes) -> bytes:
        """What goes on now that it has come."""
        if (found := self._alike(line)) is not None:
            path, text = found
            redaction, length = self._texts[path]
            if not self._lines and redaction.passes(text):
                length[0] += len(text)
                return line
            self._add(_Line(line, alike=True, pieces=[self._piece(path, text)]))
        elif line == b"\n" and not self._lines:
            return line
        else:
            self._take(line)
        return self._released()

    def _alike(self, line: bytes) -> tuple[tuple[Any, ...], bytes] | None:
        """The text of an event that is the last one but for its text, as nearly all are: reading each costs more."""
        if self._like is None:
            return None
        head, tail, path = self._like
        if len(line) < len(head) + len(tail) or not line.startswith(head) or not line.endswith(tail):
            return None
        text = line[len(head):len(line) - len(tail)]
        try:  # what ends a JSON string, or has no place in one
            alike = b'"' not in text and b"\\" not in text and text.decode().isprintable()
        except UnicodeDecodeError:
            return None
        return (path, text) if alike else None

    def _take(self, line: bytes) -> None:
        payload = line[5:].strip() if line.startswith(b"data:") else b""
        if not payload:
            self._add(_Line(self._once(line) if line.strip() else line))
        elif payload == b"[DONE]":
            self._end_texts()
            self._add(_Line(line))
        else:
            self._event(line, payload)
            if self._ends(payload):
                self._end_texts()

    def _event(self, line: bytes, payload: bytes) -> None:
        try:
            event = msgspec.json.decode(payload)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            event = None
        if not isinstance(event, dict):
            self._add(_Line(line, pieces=[self._piece(("",), line)]))
            return
        taken = _Line(line, event)
        for path, holder, key in _deltas(event):
            text = holder[key].encode("utf-8", "surrogatepass")
            if text:
                whose = path
                taken.pieces.append(self._piece(path, text, holder, key))
        ended = str(event.get("type")).endswith((".done", "_stop"))  # one text, and others go on
        if self._suspicious(payload):
            taken.changed = self._walk(event, {(id(piece.holder), piece.key) for piece in taken.pieces})
        elif len(taken.pieces) == 1 and not ended:
            self._remember(line, whose, taken.pieces[0])
        self._add(taken)
        if ended:
            self._end_texts((event.get("item_id"), _at(event.get("index"))))

    def _remember(self, line: bytes, path: tuple[Any, ...], piece: _Piece) -> None:
        """What is before and behind its one text, if that stands there as it is, and once."""
        text = b'"' + piece.text + b'"'
        if line.count(text) == 1:
            at = line.index(text) + 1
            self._like = line[:at], line[at + len(piece.text):], path

    def _piece(self, path: tuple[Any, ...], text: bytes, holder: Any = None, key: Any = None) -> _Piece:
        redaction, length = self._texts.setdefault(path, (self._redaction(), [0]))
        at, length[0] = length[0], length[0] + len(text)
        redaction.feed(text)
        return _Piece(redaction, at, text, holder, key)

    def _add(self, line: _Line) -> None:
        self._lines.append(line)
        self._waiting += len(line.raw)

    def _released(self) -> bytes:
        out = []
        while self._lines:
            if not all(piece.settled for piece in self._lines[0].pieces):
                if self._waiting <= QUEUE_MAX:
                    break
                for piece in self._lines[0].pieces:
                    piece.redaction.doubt()
            line = self._lines.popleft()
            self._waiting -= len(line.raw)
            out.append(self._shown(line))
        return b"".join(out)

    def _shown(self, line: _Line) -> bytes:
        for piece in line.pieces:
            shown = piece.redaction.shown(piece.text, piece.at)
            piece.redaction.forget(piece.at + len(piece.text))
            if shown == piece.text:
                continue
            if line.alike:
                line.event = msgspec.json.decode(line.raw[5:])
                _, piece.holder, piece.key = next(one for one in _deltas(line.event) if one[1][one[2]])
            if line.event is None:
                return shown if line.raw[-1:] != b"\n" or shown.endswith(b"\n") else shown + b"\n"
            piece.holder[piece.key] = shown.decode("utf-8", "ignore")
            line.changed = True
        if not line.changed:
            return line.raw
        _forget_tokens(line.event)
        return b"data: " + msgspec.json.encode(line.event) + line.raw[len(line.raw.rstrip(b"\r\n")):]

    def _end_texts(self, whose: tuple[Any, ...] = ()) -> None:
        """All of them, or those whose path begins so."""
        for path, (redaction, _) in self._texts.items():
            if path[:len(whose)] == whose:
                redaction.finish()

    def _suspicious(self, raw: bytes) -> bool:
        """Whether a text in this JSON could hold a secret: its first letters, or an escape, which could be any."""
        return b"\\" in raw or not self._shapes.clean(raw)

    def _walk(self, node: Any, but: set[tuple[int, Any]]) -> bool:
        """Filters each text below `node` for itself, names of members too, except `but`. Whether anything was found."""
        changed, stack = False, [node]
        while stack:
            node = stack.pop()
            for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
                if isinstance(value, dict | list):
                    stack.append(value)
                elif isinstance(value, str) and (id(node), key) not in but:
                    shown = self._text(value)
                    if shown is not value:
                        node[key], changed = shown, True
                if isinstance(key, str) and (name := self._text(key)) is not key:
                    node[name], changed = node.pop(key), True
        return changed

    def _text(self, text: str) -> str:
        raw = text.encode("utf-8", "surrogatepass")
        shown = self._once(raw)
        return text if shown == raw else shown.decode("utf-8", "ignore")

    def _once(self, text: bytes) -> bytes:
        if self._shapes.clean(text):
            return text
        redaction = self._redaction()
        redaction.feed(text)
        redaction.finish()
        return redaction.shown(text, 0)

    def _redaction(self) -> Redaction:
        return Redaction(self._shapes, self._context.filtered)


def _deltas(event: dict[str, Any]) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """The texts of an event that go on in the next: whose text, and where it stands (OpenAI, Anthropic)."""
    stack: list[tuple[tuple[Any, ...], Any, Any]] = []
    whose = (event.get("item_id"), _at(event.get("index")), _at(event.get("content_index")))
    for key in ("content_block", "delta"):  # the first words of a block, and the rest
        if key in event:
            stack.append((whose, event, key))
    choices = event.get("choices")
    for place, choice in enumerate(choices if isinstance(choices, list) else ()):
        if isinstance(choice, dict):
            path: tuple[Any, ...] = ("choices", _at(choice.get("index"), place))
            stack += [((*path, key), choice, key) for key in ("delta", "text") if key in choice]
    while stack:
        path, holder, key = stack.pop()
        value = holder[key]
        if isinstance(value, str):
            if path[-1] not in _NAMES:
                yield tuple(part if isinstance(part, str | int) else None for part in path), holder, key
        elif isinstance(value, dict):
            stack += [((*path, name), value, name) for name in value]
        elif isinstance(value, list):
            stack += [
                ((*path, _at(item.get("index"), place) if isinstance(item, dict) else place), value, place)
                for place, item in enumerate(value)
            ]


def _at(index: Any, place: int = 0) -> int:
    """Where a text stands, however that is written; where it is not said, the `place` at which it was found."""
    return index if type(index) is int else place


def _forget_tokens(event: Any) -> None:
    """Without the tokens beside a text, which would spell what was cut out of it."""
    stack = [event]
    while stack:
        node = stack.pop()
        if isinstance(node, dict) and node.get("logprobs") is not None:
            node["logprobs"] = [] if isinstance(node["logprobs"], list) else None
        for value in node.values() if isinstance(node, dict) else node:
            if isinstance(value, dict | list):
                stack.append(value)
