"""Encrypted sessions, from an accepted link to streams of requests.

Whoever has not shown who they are costs little, waits behind a cap and is served only so often a second; a part of both
is kept for tunnels of hops, which are authenticated themselves, and no hop and no address may have more than a share. A
device that is known has a few sessions at a time, of which a new one ends the oldest. Outward every refusal looks the
same; the audit has the reason.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from relay.gateway.admission import Admission
from relay.gateway.audit.log import AuditLog
from relay.gateway.audit.refusals import Refusals
from relay.gateway.errors import AuditUnavailable, GatewayError
from relay.gateway.identity.agent import GatewayIdentity
from relay.gateway.identity.attestation import Attestation, Attested
from relay.gateway.identity.ca import Authority
from relay.gateway.identity.enrolment import Enrolment, Joined
from relay.gateway.identity.probes import Probes
from relay.gateway.identity.registrations import Registration
from relay.gateway.identity.watch import Watch
from relay.gateway.requests import Acknowledgements, Asker, Requests, Settled
from relay.gateway.trace import TraceStore
from relay.places import Places, source_of_link
from store.errors import StoreError
from transport.connection import CLOSE_REVOKED
from transport.errors import IdentityRefused, LinkLost, TransportError
from transport.handshake import FrameType, Hint, JoinCredential, RenewCredential
from transport.identity.revocation import RevocationList
from transport.identity.verify import VerifiedPeer, verify_svid
from transport.links.base import Link
from transport.messages import Issued, SpanRecord, Welcome
from transport.serving import GatewaySession, Responder
from transport.session import Clock, session_clock
from transport.tickets import TicketStore

SESSION_ROLE: Final = "edge"  # who comes this way; hops, gateways and workloads join by HTTPS
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SessionLimits:
    sessions: int = 2_000
    handshakes: int = 64
    handshake_s: float = 15.0
    requests: int = 32  # at once on one session
    per_device: int = 4  # sessions of one enrolment
    full_per_second: float = 400.0  # full handshakes in all; see Admission

    @property
    def direct_handshakes(self) -> int:
        """Links that come straight from anywhere leave a quarter of the places to tunnels."""
        return max(1, self.handshakes * 3 // 4)

    @property
    def full_handshakes(self) -> int:
        """Full ones leave a quarter of the places to those who resume by a ticket."""
        return max(1, self.handshakes * 3 // 4)

    @property
    def direct_full_handshakes(self) -> int:
        """Of the full ones, those that came straight leave a third to tunnels."""
        return max(1, self.full_handshakes * 2 // 3)

    @property
    def handshakes_per_source(self) -> int:
        """One hop's strangers, or one address's, do not keep out those of others."""
        return max(1, self.handshakes // 4)


class Sessions:
    """All live sessions of a gateway."""

    def __init__(
        self, *, identity: GatewayIdentity, authority: Authority, enrolment: Enrolment, requests: Requests,
        traces: TraceStore, audit: AuditLog, refusals: Refusals, tickets: TicketStore,
        limits: SessionLimits, clock: Callable[[], float] = time.time, ticking: Callable[[], float] = time.monotonic,
        session_clock: Callable[[], Clock] = session_clock,
        revocations: Callable[[], RevocationList] = RevocationList, probes: Probes | None = None,
        joining: GatewayIdentity | None = None, attestation: Attestation | None = None,
    ) -> None:
        """`tickets`: of this process, since they die with it. `ticking`: seconds by a clock that nobody sets.

        `session_clock` makes a clock for each session; `revocations` has the latest signed list; `joining` is for
        those who join or renew, as in `Responder`.
        """
        self._tickets = tickets
        self._authority = authority
        self._enrolment = enrolment
        self._requests = requests
        self._traces = traces
        self._audit = audit
        self._refusals = refusals
        self._revocations = revocations
        self._probes = probes
        self.watch = Watch(enrolment, ticking)
        self._attestation = attestation or Attestation()
        self._limits = limits
        self._clock, self._ticking = clock, ticking
        self._admission = Admission(limits.full_per_second, ticking())
        self._responder = Responder(
            svid=identity.svid,
            root=lambda: authority.root,
            verify_edge=self._verify_edge,
            tickets=self._tickets,
            clock=session_clock,
            joining=None if joining is None else joining.svid,
        )
        self._full_handshakes = self._direct_full = 0  # under way
        self._handshaking = Places(limits.handshakes, limits.handshakes_per_source)
        self._of_device: dict[int, list[tuple[GatewaySession, str]]] = {}  # by enrolment, oldest first, with their via
        self._links = 0
        self._through: dict[str, set[Link]] = {}  # by the hop they come through
        self._live: set[GatewaySession] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self._forgotten = enrolment.endings

    async def serve_link(
        self, link: Link, *, via: str = "", known: Callable[[str], None] = lambda _: None,
        settled: Settled = None,
    ) -> None:
        """Runs one link to its end and closes it. `via`: SPIFFE ID of the hop it came through, "" if none.

        `known` is told the link id once the handshake is over, `settled` is called after each request. Raises nothing
        but cancellation.
        """
        cap = self._limits.handshakes if via else self._limits.direct_handshakes
        source = via or source_of_link(link.peer)
        if (
            self._draining or self._handshaking.taken >= cap or self._links >= self._limits.sessions
            or not self._handshaking.take(source)
        ):
            await self._turn_away(link)
            return
        self._links += 1
        if via:
            self._through.setdefault(via, set()).add(link)
        try:
            session = await self._handshake(link, via, source)
            if session is not None:
                known(session.link_id)
                await self._run(session, via, source, settled)
        except TransportError as error:
            _log.info("session on %s ended: %s", link.peer, error.code)
        except (AuditUnavailable, StoreError) as error:
            _log.error("session on %s ended: %s", link.peer, error)
        finally:
            self._links -= 1
            if via:
                self._through[via].discard(link)
                if not self._through[via]:
                    del self._through[via]
            await link.close()

    def limit(self, limits: SessionLimits) -> None:
        """From now on; what is above them already stays."""
        if limits.full_per_second != self._limits.full_per_second:
            self._admission = Admission(limits.full_per_second, self._ticking())
        self._limits = limits
        self._handshaking.total, self._handshaking.share = limits.handshakes, limits.handshakes_per_source

    async def cut(self, ended: Sequence[Registration]) -> None:
        """Ends all that lives of registrations that have ended: sessions, told why; tunnels; tickets; calls, answers.

        No frame of theirs is taken once this has begun, however slow the other end is to go. Raises StoreError.
        """
        for one in ended:
            for session, _ in self._of_device.get(one.enrolment, ()):
                session.cut(CLOSE_REVOKED)
                self._start(session.close(CLOSE_REVOKED), set())
            for link in self._through.get(one.id, ()):
                self._start(link.close("shutdown"), set())
        await self._forget_ended()

    async def drain(self, seconds: float, hurry: asyncio.Event | None = None) -> None:
        """Takes nothing new, lets requests that run finish for up to `seconds` or until `hurry` is set, then closes
        every session.
        """
        self._draining = True
        if tasks := self._tasks | self._requests.running:
            _log.warning("what is under way may end within %g s; a second signal ends it now", seconds)
            await finished(tasks, seconds, hurry or asyncio.Event())
        await asyncio.gather(*(session.close("shutdown") for session in set(self._live)), return_exceptions=True)

    # --- one session ------------------------------------------------------------------------------------------------

    async def _turn_away(self, link: Link) -> None:
        try:
            async with asyncio.timeout(1.0):
                await link.send(bytes([FrameType.HINT, Hint.OVERLOADED]))
        except (LinkLost, TimeoutError):
            pass
        await link.close()

    async def _handshake(self, link: Link, via: str, source: str) -> GatewaySession | None:
        """Leaves the place of `source` in any case."""
        full = False

        def take_full() -> bool:
            nonlocal full
            room = self._full_handshakes < self._limits.full_handshakes and (
                bool(via) or self._direct_full < self._limits.direct_full_handshakes
            )
            full = room and self._admission.full(source, self._ticking(), direct=not via)
            self._full_handshakes += full
            self._direct_full += full and not via
            return full

        def take_resumed() -> bool:
            return self._admission.resumed(source, self._ticking())

        responder = replace(self._responder, take_full=take_full, take_resumed=take_resumed)
        try:
            async with asyncio.timeout(self._limits.handshake_s):
                return await GatewaySession.accept(link, responder)
        except TimeoutError:
            _log.info("handshake on %s was not finished in time", link.peer)
        except IdentityRefused as refusal:
            await self._refusals.append("session.refused", reason=refusal.rule, via=via, peer=link.peer)
        finally:
            self._handshaking.leave(source)
            self._full_handshakes -= full
            self._direct_full -= full and not via
        return None

    async def _run(self, session: GatewaySession, via: str, source: str, settled: Settled) -> None:
        self._live.add(session)
        try:
            match session.credential:
                case VerifiedPeer() as peer:
                    await self._serve(session, peer, via, source, settled)
                case JoinCredential() | RenewCredential() as credential:
                    await self._enrol(session, credential, via)
        finally:
            self._live.discard(session)
            await session.close()

    async def _enrol(self, session: GatewaySession, credential: JoinCredential | RenewCredential, via: str) -> None:
        roles = (SESSION_ROLE,)
        try:
            if isinstance(credential, JoinCredential):
                attested = await self._attested(session, credential, via) if credential.attests else None
                joined = await self._enrolment.join(
                    credential.token_id, credential.secret, credential.csr, credential.device_key.spki,
                    roles=roles, via=via, attested=attested,
                )
                await self._forget_ended()
            else:
                try:
                    credential.verify(self._enrolment.device_key(credential.device_id))
                except IdentityRefused as refusal:
                    await self._refusals.append(
                        "renew.refused", reason=refusal.rule, device=credential.device_id.hex(), via=via
                    )
                    raise
                joined = await self._enrolment.renew(credential.device_id, credential.csr, roles=roles, via=via)
        except (GatewayError, StoreError, IdentityRefused) as error:
            if getattr(error, "fault", "") != "identity":
                _log.error("joining failed: %s", error)
            await session.refuse()
            return
        await session.issue(self._message(joined))

    async def _attested(self, session: GatewaySession, credential: JoinCredential, via: str) -> Attested:
        """What a device shows of its TPM before it may use its invitation. Raises EnrolmentRefused, TransportError."""
        token_id, key = credential.token_id, credential.device_key
        identity = await self._enrolment.check_invitation(
            token_id, credential.secret, key, roles=(SESSION_ROLE,), via=via
        )
        try:
            pending = self._attestation.begin(await session.evidence(), key, self._clock())
            session.challenge(pending.challenge)
            return pending.check(await session.evidence())
        except IdentityRefused as refusal:
            raise await self._enrolment.refused_join(refusal.rule, token_id, identity, key, via) from None

    async def _forget_ended(self) -> None:
        """A new holder of a name, or a device with a new one, has nothing of the old one's.

        All is looked through, so only if a registration has ended since that was done last.
        """
        endings = self._enrolment.endings
        if endings != self._forgotten:
            await self._requests.forget_ended()
            self._tickets.drop(lambda peer: not self._admitted(peer))
            self._forgotten = endings

    def _admitted(self, peer: VerifiedPeer) -> bool:
        try:
            self._enrolment.admit(peer)
        except IdentityRefused:
            return False
        return True

    def _message(self, joined: Joined) -> Issued:
        bundle = self._authority.bundle
        return Issued(
            str(joined.issued.id), list(joined.issued.chain), list(bundle.roots), bundle.sequence, joined.enrolment
        )

    async def _serve(
        self, session: GatewaySession, peer: VerifiedPeer, via: str, source: str, settled: Settled
    ) -> None:
        if self._probes is not None and self._probes.take(peer):
            session.admit(self._welcome(0, via))
            return  # that it is told so is all: whoever asks for anything finds the session closed
        try:
            await self._enrolment.meet(peer)
            enrolment = self._enrolment.enrolment_of(peer)
            await self._audit.append(
                "session.opened", id=str(peer.id), enrolment=enrolment, via=via, link=session.link_id
            )
            self._enrolment.admit(peer)  # it may have ended while that was written
        except IdentityRefused as refusal:
            await self._refusals.append("session.refused", id=str(peer.id), reason=refusal.rule, via=via)
            await session.refuse()
            return
        except AuditUnavailable:
            await session.refuse()
            raise
        asker = Asker(peer, enrolment, via, session.link_id)
        claims: set[asyncio.Task[None]] = set()  # spans being stored
        session.on_posture = lambda posture: self._requests.policy.take_posture(enrolment, posture)
        session.on_spans = lambda spans: self._take_spans(str(peer.id), spans, claims)
        acks = Acknowledgements(
            self._requests, asker, lambda: self._start(session.close("protocol_error"), set())
        )
        session.on_ack = acks.take
        session.on_held = self._list_for(session)
        session.admit(self._welcome(enrolment, via))
        mine = self._of_device.setdefault(enrolment, [])
        mine.append((session, via))
        self.watch.opened(enrolment, session, source)
        tasks: set[asyncio.Task[None]] = set()
        try:
            await self._enrolment.seen(enrolment)
            if not session.resumed:
                await self.watch.shown(peer, enrolment, source)
            while len(mine) > self._limits.per_device:
                await self._displace(str(peer.id), enrolment, *mine.pop(0))
            async for stream in session.requests():
                await self.watch.asked(enrolment, session)
                if self._draining:
                    stream.refuse(503, "shutting_down", "the gateway is shutting down", retryable=True)
                elif len(tasks) >= self._limits.requests:
                    stream.refuse(429, "too_many_requests", "too many requests at once", retryable=True)
                else:
                    self._start(self._requests.serve(asker, stream, settled), tasks)
        finally:
            self.watch.closed(enrolment, session)
            if (session, via) in mine:
                mine.remove((session, via))
            if not mine and self._of_device.get(enrolment) is mine:
                del self._of_device[enrolment]
            # Streams whose session is gone end by their own watch, and their calls go on without them.
            if tasks or claims:
                await asyncio.wait(tasks | claims)
            await acks.settled()
            await self._audit.append("session.closed", id=str(peer.id), via=via, link=session.link_id)

    def _welcome(self, enrolment: int, via: str) -> Welcome:
        return Welcome(self._requests.epoch_of(enrolment), via, self._authority.bundle.sequence)

    async def _displace(self, device: str, enrolment: int, session: GatewaySession, via: str) -> None:
        """Ends the oldest session of a device that has opened too many; whoever opened the newest waits for no peer."""
        await self._audit.append("session.displaced", id=device, enrolment=enrolment, via=via, link=session.link_id)
        self._start(session.close("overloaded"), set())

    def _verify_edge(self, chain: Sequence[bytes], now: float) -> VerifiedPeer:
        peer = verify_svid(chain, self._authority.bundle, role=SESSION_ROLE, now=now)
        self._revocations().check(peer)
        return peer

    def _list_for(self, session: GatewaySession) -> Callable[[int], None]:
        told = 0

        def tell(held: int) -> None:
            nonlocal told
            latest = self._revocations()
            if latest.sequence > max(held, told):  # each list once, however often a device asks
                told = latest.sequence
                session.send_revocations(latest.data)

        return tell

    def _take_spans(self, device: str, spans: list[SpanRecord], claims: set[asyncio.Task[None]]) -> None:
        async def keep() -> None:
            await self._traces.add_from_edge(device, spans)

        if len(claims) < self._limits.requests:  # more than it has requests is not about its requests
            self._start(keep(), claims)

    def _start(self, work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.ensure_future(_logged(work))
        for group in (tasks, self._tasks):
            group.add(task)
            task.add_done_callback(group.discard)


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except TransportError:
        pass
    except Exception as error:  # the session and the others go on; the text could quote a prompt
        _log.error("a request failed in the gateway: %s", type(error).__name__)


async def finished(tasks: set[asyncio.Task[None]], seconds: float, hurry: asyncio.Event) -> None:
    """Waits for all of them, for `seconds` at most, or until `hurry` is set."""
    hurried = asyncio.create_task(hurry.wait())
    done = asyncio.create_task(_all_of(tasks, seconds))
    await asyncio.wait({done, hurried}, return_when=asyncio.FIRST_COMPLETED)
    done.cancel()
    hurried.cancel()


async def _all_of(tasks: set[asyncio.Task[None]], seconds: float) -> None:
    await asyncio.wait(tasks, timeout=seconds)
