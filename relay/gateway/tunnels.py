"""A hop's tunnel, once it is known whose: a session in it, and the hop's last note about it."""

from relay.gateway.sessions import Sessions
from relay.gateway.trace import HopNote, TraceStore, parse_note
from transport.errors import CloseReason
from transport.links.websocket import WebSocketLink


class TunnelNotes:
    """Keeps what a hop says about one tunnel, once the tunnel's link id is known to be the same."""

    def __init__(self, hop: str, traces: TraceStore) -> None:
        self.hop, self._traces = hop, traces
        self._link_id = ""
        self._latest: HopNote | None = None

    def bind(self, link_id: str) -> None:
        self._link_id = link_id

    def take(self, text: str) -> None:
        self._latest = parse_note(text) or self._latest

    @property
    def bound(self) -> bool:
        """Whether the tunnel's session came through its handshake."""
        return self._link_id != ""

    async def save(self) -> None:
        note = self._latest
        if note is not None and note.link == self._link_id:
            await self._traces.note(self.hop, note)


class Tunnel:
    """A hop's tunnel; it ends as an error if its session never came about, so that the hop slows that stranger down."""

    def __init__(self, link: WebSocketLink, notes: TunnelNotes) -> None:
        self.peer = link.peer
        self.send, self.receive = link.send, link.receive
        self._link, self._notes = link, notes

    async def close(self, reason: CloseReason = "done") -> None:
        await self._link.close(reason if self._notes.bound else "error")


async def carry(link: WebSocketLink, notes: TunnelNotes, sessions: Sessions) -> None:
    """Serves one tunnel to its end. The link was made with `notes.take` for its notes."""
    await sessions.serve_link(Tunnel(link, notes), via=notes.hop, known=notes.bind, settled=notes.save)
    await notes.save()
