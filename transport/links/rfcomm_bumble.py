"""RFCOMM on a bumble device, for a hop that listens and an edge that connects: no kernel's Bluetooth plays a part.

No person is asked for anything: what protects the bytes is inside them. What bumble leaves to its user is done
here: credit is given as the reader takes what came, an end is told from a loss, peers that say nothing or too much are
disconnected.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Final

from bumble import hci, sdp
from bumble.core import UUID, BaseBumbleError, PhysicalTransport
from bumble.device import Connection, Device
from bumble.l2cap import ClassicChannel, ClassicChannelSpec
from bumble.rfcomm import DLC, Client, Multiplexer, RFCOMM_Frame, Server, make_service_sdp_records
from bumble.utils import AsyncRunner

from transport.errors import BadInput, CloseReason, LinkLost, ProtocolViolation
from transport.links.base import CLOSE_TIMEOUT_S, RECEIVE_MAX, Endpoint, Link
from transport.links.rfcomm import SERVICE, RfcommDialer, SerialLink, address_of
from transport.links.sdp import PSM, channel, question
from transport.links.served import OnLink, ServedLinks

EDGES_MAX: Final = 7  # a piconet has no room for more
SILENT_S: Final = 10.0  # for an edge that has connected to open its channel
SETUP_S: Final = 10.0  # for a radio to call a hop, which takes it 5 s at most, and for the hop to open it
FRAME: Final = 1000  # bytes that are offered to take at once
_INBOX_LOW: Final = RECEIVE_MAX // 2  # bytes; with what credits allow on top, an inbox has less than twice as many
_PART: Final = 8 * FRAME  # that bumble, which copies all it holds for each frame, is given at once
_BACKLOG_MAX: Final = 256  # packets that wait for the controller: links wait for room, a flood of requests does not
_RECORD: Final = 0x00010001  # of the services here

_spawn: Final[Callable[[Coroutine[Any, Any, None]], None]] = AsyncRunner.spawn



class DlcLink(SerialLink):
    """A link over one channel, the only one of a connection, which is ended with it."""

    def __init__(self, dlc: DLC, connection: Connection, peer: str, ended: Callable[[], None] = lambda: None) -> None:
        super().__init__(peer, ended)
        self._dlc, self._connection = dlc, connection
        dlc.rx_credits_needed = self._credits  # type: ignore[method-assign]
        dlc.on_disc_frame = self._end  # type: ignore[method-assign]  # bumble's own takes no notice of it
        dlc.on(dlc.EVENT_CLOSE, self._gone)
        dlc.sink = self._take

    async def close(self, reason: CloseReason = "done") -> None:
        """As Link.close; RFCOMM cannot carry a reason. The connection is ended as well."""
        if self._closed:
            return
        polite = reason == "done" and not self._lost and not self._over
        self._closed, self._lost = True, "the link is closed at this end"
        self._wake()
        try:
            if polite:
                await _within(CLOSE_TIMEOUT_S, self._say_goodbye())
        finally:
            self._ending = asyncio.ensure_future(hang_up(self._connection))
            self._ending.add_done_callback(lambda _: self._ended())
        await asyncio.shield(self._ending)

    async def _say_goodbye(self) -> None:
        """After all that was sent, and until the peer has heard it."""
        while self._dlc.tx_buffer and not self._over and self._dlc.state == DLC.State.CONNECTED:
            self._dlc.drained.clear()
            await self._dlc.drained.wait()
        if not self._over:
            await self._dlc.disconnect()

    async def _give(self, view: memoryview) -> int:
        queue = self._connection.data_packet_queue
        if self._dlc.tx_buffer:
            await self._dlc.drained.wait()
        elif queue is not None and queue.pending >= queue.max_in_flight:
            self._room.clear()
            queue.once("flow", self._room.set)
            await self._room.wait()
        else:
            self._dlc.write(bytes(view[:_PART]))
            return _PART
        return 0

    def _wants(self) -> None:
        if not self._over and not self._lost:
            self._dlc.process_tx()

    def _credits(self) -> int:
        return 0 if len(self._inbox) > _INBOX_LOW or self._closed else DLC.rx_credits_needed(self._dlc)

    def _take(self, data: bytes) -> None:
        self._inbox += data
        self._some.set()
        if len(self._inbox) > 2 * RECEIVE_MAX:
            raise ProtocolViolation("the peer sent more than it had credit for")

    def _end(self, _frame: RFCOMM_Frame) -> None:
        DLC.on_disc_frame(self._dlc, _frame)
        self._over = True
        self._wake()

    def _gone(self) -> None:
        if not self._over and not self._lost:
            self._lost = "the connection was lost"
        self._wake()

    def _wake(self) -> None:
        for event in (self._some, self._room, self._dlc.drained):
            event.set()


class BumbleRfcomm:
    """A device's serial port: links to hops, and one listener at a time."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._dialer = RfcommDialer(self._open)
        self._dialling = asyncio.Lock()  # a radio calls one at a time
        self._server = Server(device)
        self._server.on(Server.EVENT_START, _guard)
        # bumble's own answers all who ask on the channel of who came last
        device.l2cap_channel_manager.servers[PSM].handler = self._answer_questions
        self._listener: BumbleRfcommListener | None = None

    async def connect(self, endpoint: Endpoint, *, timeout_s: float) -> Link:
        """See `transport.links.base.connect`. Raises LinkLost, BadInput."""
        self._check()
        return await self._dialer.connect(endpoint, timeout_s=timeout_s)

    async def listen(self, endpoint: Endpoint, on_link: OnLink) -> "BumbleRfcommListener":
        """See `transport.links.base.listen`. Raises LinkLost, BadInput."""
        self._check()
        address, number = address_of(endpoint)
        if address:
            raise BadInput("a hop listens on its own radio", hint="listen on rfcomm: or rfcomm:?channel=N")
        if self._listener is not None and not self._listener.closed:
            raise BadInput("this radio listens already", hint="one listener serves many edges")
        self._listener = BumbleRfcommListener(self._device, self._server, endpoint, on_link)
        try:
            await self._listener.start(number or 0)
        except BaseException:
            await self._listener.close()
            raise
        return self._listener

    async def close(self) -> None:
        if self._listener is not None:
            await self._listener.close()

    def _check(self) -> None:
        if not self._device.classic_enabled:
            raise LinkLost(
                "this Bluetooth radio has no RFCOMM: it is for Low Energy alone", reason="unavailable",
                hint="use a ble: endpoint, or a dongle for Bluetooth Classic",
            )

    def _answer_questions(self, asked: ClassicChannel) -> None:
        server = sdp.Server(self._device)
        server.service_records = self._device.sdp_service_records
        server.channel = asked
        asked.sink = _guarded(asked.connection, server.on_pdu)

    async def _open(self, endpoint: Endpoint, ended: Callable[[], None]) -> DlcLink:
        """Who gives up meanwhile leaves an attempt that tidies up: bumble's commands must not be abandoned."""
        attempt = asyncio.ensure_future(self._dial(endpoint, ended))
        try:
            await asyncio.wait({attempt})
        except asyncio.CancelledError:
            attempt.add_done_callback(_close_unwanted)
            raise
        if attempt.cancelled():  # which is how bumble says that the connection or the radio is gone
            raise LinkLost("the connection was lost before the link was made")
        return attempt.result()

    async def _dial(self, endpoint: Endpoint, ended: Callable[[], None]) -> DlcLink:
        address, number = address_of(endpoint)
        async with self._dialling:
            try:
                async with asyncio.timeout(SETUP_S):
                    to = hci.Address(address, hci.Address.PUBLIC_DEVICE_ADDRESS)
                    connection = await self._device.connect(to, PhysicalTransport.BR_EDR, timeout=None)
            except (BaseBumbleError, TimeoutError) as error:
                raise LinkLost(
                    f"no answer from {endpoint}", reason="out_of_range", hint="is it in reach, and its Bluetooth on?"
                ) from error
        try:
            async with asyncio.timeout(SETUP_S):
                number = number or await _ask_channel(connection)
                multiplexer = await Client(connection).start()
                _guard(multiplexer)
                return DlcLink(await multiplexer.open_dlc(number, FRAME), connection, str(endpoint), ended)
        except (BaseBumbleError, TimeoutError) as error:
            await hang_up(connection)
            raise LinkLost(
                f"cannot reach {endpoint}: no hop listens there",
                hint="does it serve rfcomm:, and is the channel right?",
            ) from error
        except BaseException:
            await hang_up(connection)
            raise


class BumbleRfcommListener:
    """Accepts links from edges, see `transport.links.base.Listener`. One on each connection, EDGES_MAX at once."""

    def __init__(self, device: Device, server: Server, endpoint: Endpoint, on_link: OnLink) -> None:
        self.endpoint = endpoint
        self.closed = False
        self._device, self._server = device, server
        self._channel = 0
        self._edges: dict[Connection, asyncio.TimerHandle | None] = {}  # the alarm of who is silent
        self._links = ServedLinks(on_link)

    async def start(self, number: int) -> None:
        """Raises LinkLost."""
        self._channel = self._server.listen(self._opened, number, FRAME)
        self._device.sdp_service_records[_RECORD] = make_service_sdp_records(_RECORD, self._channel, UUID(SERVICE))
        self._device.on(Device.EVENT_CONNECTION, self._connected)
        try:
            await self._device.set_connectable(True)
        except (BaseBumbleError, TimeoutError) as error:
            raise LinkLost("the Bluetooth radio cannot be connected to", reason="unavailable") from error

    async def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._device.remove_listener(Device.EVENT_CONNECTION, self._connected)
        self._device.sdp_service_records.pop(_RECORD, None)
        self._server.acceptors.pop(self._channel, None)
        self._server.dlc_configs.pop(self._channel, None)
        await self._links.close()
        await asyncio.gather(*map(hang_up, list(self._edges)))
        with contextlib.suppress(BaseBumbleError, TimeoutError):
            await self._device.set_connectable(False)

    def _connected(self, connection: Connection) -> None:
        if connection.transport != PhysicalTransport.BR_EDR or connection.role != hci.Role.PERIPHERAL:
            return
        if len(self._edges) >= EDGES_MAX:
            _spawn(hang_up(connection))
            return
        alarm = asyncio.get_running_loop().call_later(SILENT_S, lambda: _spawn(hang_up(connection)))
        self._edges[connection] = alarm
        connection.once(connection.EVENT_DISCONNECTION, lambda _: self._disconnected(connection))

    def _disconnected(self, connection: Connection) -> None:
        if (alarm := self._edges.pop(connection, None)) is not None:
            alarm.cancel()

    def _opened(self, dlc: DLC) -> None:
        connection = dlc.multiplexer.l2cap_channel.connection
        alarm = self._edges.get(connection)
        if alarm is None or self.closed:  # one that opens a channel twice, or that came before the hop listened
            _spawn(hang_up(connection))
            return
        alarm.cancel()
        self._edges[connection] = None
        peer = f"rfcomm:{connection.peer_address.to_string(with_type_qualifier=False)}"
        self._links.serve(DlcLink(dlc, connection, peer))


async def hang_up(connection: Connection) -> None:
    """Ends a connection that has not ended."""
    if connection.device.connections.get(connection.handle) is connection:
        await _within(CLOSE_TIMEOUT_S, connection.disconnect())


async def _within(seconds: float, coroutine: Coroutine[Any, Any, None]) -> None:
    """How it fails is not told: bumble cancels what waits for a connection that has ended, which is all that is wanted.
    """
    task = asyncio.ensure_future(coroutine)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()


async def _ask_channel(connection: Connection) -> int:
    """Raises LinkLost, ProtocolViolation."""
    asking = await connection.create_l2cap_channel(ClassicChannelSpec(psm=PSM))
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    asking.sink = lambda pdu: None if answer.done() else answer.set_result(pdu)
    asking.write(question(SERVICE, 1))
    found = channel(await connection.cancel_on_disconnection(answer), 1)
    if found is None:
        raise LinkLost("the device is no hop for RFCOMM", hint="does it serve rfcomm: now?")
    await asking.disconnect()
    return found


def _guard(multiplexer: Multiplexer) -> None:
    channel = multiplexer.l2cap_channel
    channel.sink = _guarded(channel.connection, multiplexer.on_pdu)


def _guarded(connection: Connection, take: Callable[[bytes], Any]) -> Callable[[bytes], None]:
    """Disconnects a peer whose bytes make no sense, of which bumble's parsers raise anything, and one that asks for
    more than it takes.
    """
    def taken(pdu: bytes) -> None:
        queue = connection.data_packet_queue
        try:
            if queue is not None and queue.pending > queue.max_in_flight + _BACKLOG_MAX:
                raise ProtocolViolation("the peer takes no answers")
            take(pdu)
        except Exception:
            _spawn(hang_up(connection))

    return taken


def _close_unwanted(attempt: asyncio.Task[DlcLink]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        _spawn(attempt.result().close())
