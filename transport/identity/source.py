"""This side's SVID and trust bundle from a SPIFFE agent (SPIRE's or another's), by the Workload API.

The client library hands over what the agent says and verifies no chain. So all of it is verified here, as if a stranger
had sent it, before anything uses it: the path, the ID and its role, the key, the validity and how long that is. What is
refused changes nothing. The agent pushes each change; where it is lost, the last SVID stays until it runs out.

Source: SPIFFE Workload API sections 4 and 5, X509-SVID.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from transport.errors import AgentLost, BadInput, IdentityRefused
from transport.identity.svid import SpiffeId, Svid, TrustBundle, load_certificate, spiffe_id_of
from transport.identity.verify import check_floor, verify_svid
from transport.primitives import Secret, SigningKey

SVID_MAX_S: Final = 3_600 + 300  # an hour from issue, and what a server sets the start back for clocks that are behind
ROOTS_MAX: Final = 3  # as many as a device is sent
SVIDS_MAX: Final = 16  # of one workload
RETRY_S: Final = (0.5, 30.0)  # first and longest wait before an agent that is lost is asked again
WAITING_S: Final = 2.0  # longest wait before the first SVID: an agent learns of a new entry within seconds
FIRST_S: Final = 60.0  # until the agent must have given that to a server that starts
_WHERE: Final = "is the agent running, and is the socket's path right?"
_REGISTER: Final = "register this process with the SPIRE server: docs/SPIRE.md"


@dataclass(frozen=True)
class Offer:
    """What an agent says: SVIDs (chain in DER, leaf first, and PKCS#8 key), roots (DER) of each trust domain."""

    svids: Sequence[tuple[Sequence[bytes], Secret]]
    roots: Mapping[str, Sequence[bytes]]


Failure = AgentLost | IdentityRefused
Take = Callable[[Offer], None]
Lost = Callable[[AgentLost], None]
Connect = Callable[[str, Take, Lost], Callable[[], None]]  # both are called from another thread; returns what ends it


class AgentSource:
    """One workload's identity as its agent has it. Await `start` before `svid` or `bundle` are asked for.

    `on_change` are called, on the event loop, after each change of `svid` or `bundle`.
    """

    def __init__(
        self, socket: str, role: str, *, path: str | None = None, trust_domain: str | None = None,
        longest_s: int = SVID_MAX_S, clock: Callable[[], float] = time.time,
        report: Callable[[str], None] = lambda line: None, connect: Connect | None = None,
    ) -> None:
        """`socket`: unix:///PATH. Of several SVIDs the first of `role` is taken, or the one of exactly `path`
        (/gateway/main). `longest_s`: seconds from notBefore to notAfter. `report` takes a line for a person.
        """
        self.socket = socket_path(socket)
        self._role, self._path, self._trust_domain = role, path, trust_domain
        self._longest_s, self._clock, self._report = longest_s, clock, report
        self._connect = connect or _listen
        self.on_change: list[Callable[[], None]] = []
        self._svid: Svid | None = None
        self._bundle: TrustBundle | None = None
        self._failure: Failure | None = None
        self._task: asyncio.Task[None] | None = None
        self._there = asyncio.Event()
        self._pause = RETRY_S[0]
        self._told = ""
        self._end: Callable[[Failure], None] = lambda failure: None  # of the stream that runs

    async def start(self, within_s: float = FIRST_S) -> None:
        """Waits for the first identity. Raises AgentLost, IdentityRefused: what was wrong last; BadInput if the client
        library is not installed.
        """
        if self._connect is _listen and find_spec("spiffe") is None:
            raise BadInput("the client of SPIFFE agents is not installed", hint="pip install 'causeway[spire]'")
        if self._task is None:
            self._task = asyncio.create_task(self._keep_listening())
        there = asyncio.ensure_future(self._there.wait())
        try:
            await asyncio.wait({there, self._task}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
            if self._task is not None and self._task.done():
                await self._task  # it only ends by a fault of ours, which is not to be waited out
        finally:
            there.cancel()
        if not self._there.is_set():
            raise self._failure or AgentLost(
                f"the SPIFFE agent at {self.socket} does not answer", reason="unreachable", hint=_WHERE
            )

    async def close(self) -> None:
        """Ends the stream. What was given out stays good."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    @property
    def svid(self) -> Svid:
        """The last one that was verified; it may have run out. Raises AgentLost before the first."""
        if self._svid is None:
            raise AgentLost(f"the SPIFFE agent at {self.socket} has given no identity yet", reason="unreachable")
        return self._svid

    @property
    def bundle(self) -> TrustBundle:
        """Its `sequence` counts the changes that this process has seen. Raises as `svid`."""
        if self._bundle is None:
            raise AgentLost(f"the SPIFFE agent at {self.socket} has given no trust bundle yet", reason="unreachable")
        return self._bundle

    @property
    def failure(self) -> Failure | None:
        """Why the agent, or its latest answer, is of no use just now; None if it is."""
        return self._failure

    def take(self, offer: Offer) -> None:
        """Believes an offer or not. Raises IdentityRefused, which names the rule; then all stays as it is."""
        now = self._clock()
        chain, key, identity = self._ours(offer)
        roots = tuple(dict.fromkeys(offer.roots.get(identity.trust_domain, ())))
        if not 1 <= len(roots) <= ROOTS_MAX:
            raise IdentityRefused(f"the trust bundle has not 1 to {ROOTS_MAX} roots", rule="bundle size")
        held = self._bundle
        bundle = TrustBundle(identity.trust_domain, roots, 1)
        if held is not None:
            same = set(held.roots) == set(roots)
            bundle = held if same else TrustBundle(held.trust_domain, roots, held.sequence + 1)
        if self._svid is not None:
            check_floor(self._svid.not_before, now)
        peer = verify_svid(chain, bundle, role=self._role, now=now)
        if now >= peer.not_after:
            raise IdentityRefused("the agent's SVID has run out", rule="expired", hint="is the SPIRE server in reach?")
        leaf = load_certificate(chain[0])
        if (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds() > self._longest_s:
            raise IdentityRefused(
                f"the agent's SVID lives longer than {self._longest_s} seconds", rule="lifetime",
                hint="set default_x509_svid_ttl of the SPIRE server, or the entry's, to an hour at most",
            )
        svid = Svid.from_chain([der for der in chain if der not in roots], _key(key))
        # What ends first ends it: a certificate above the leaf may have less time left.
        svid = Svid(svid.id, svid.chain, svid.key, peer.not_before, peer.not_after)
        changed = self._svid is None or self._svid.chain != svid.chain or bundle is not held
        self._svid, self._bundle, self._failure = svid, bundle, None
        self._there.set()
        if changed:
            for tell in list(self.on_change):
                tell()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _ours(self, offer: Offer) -> tuple[Sequence[bytes], Secret, SpiffeId]:
        if not 1 <= len(offer.svids) <= SVIDS_MAX:
            raise IdentityRefused(f"the agent has not 1 to {SVIDS_MAX} identities for this process", rule="SVID count")
        domain = self._trust_domain if self._bundle is None else self._bundle.trust_domain
        seen: list[str] = []
        for chain, key in offer.svids:
            identity = spiffe_id_of(load_certificate(chain[0] if chain else b""))
            if identity.role == self._role and self._path in (None, identity.path) and (
                domain in (None, identity.trust_domain)
            ):
                return chain, key, identity
            seen.append(str(identity))
        wanted = self._path or f"/{self._role}/NAME"
        raise IdentityRefused(
            f"the agent's identity for this process is not {wanted}{f' of {domain}' if domain else ''}", rule="role",
            hint=f"the agent has {seen[0]}: look at the SPIRE server's entry for this process",
        )

    async def _keep_listening(self) -> None:
        loop = asyncio.get_running_loop()

        def aside(work: Callable[[], None]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended; the library's thread has not yet
                loop.call_soon_threadsafe(work)

        def told(end: Callable[[Failure], None]) -> Lost:
            return lambda error: aside(partial(end, error))

        while True:
            ended: asyncio.Future[Failure] = loop.create_future()

            def end(failure: Failure, ended: "asyncio.Future[Failure]" = ended) -> None:
                if not ended.done():
                    ended.set_result(failure)

            self._end = end
            stop = _nothing
            try:
                stop = await asyncio.to_thread(
                    self._connect, self.socket, lambda offer: aside(partial(self._arrived, offer)), told(end)
                )
            except AgentLost as error:
                end(error)
            try:
                self._failed(await ended)
            finally:
                await asyncio.shield(asyncio.to_thread(stop))
            pause, self._pause = self._pause, min(self._pause * 2, WAITING_S if self._svid is None else RETRY_S[1])
            await asyncio.sleep(pause)

    def _arrived(self, offer: Offer) -> None:
        try:
            self.take(offer)
        except IdentityRefused as refusal:
            self._end(refusal)  # and ask again: it may have been this side's clock, or an entry that is mended soon
            return
        self._pause = RETRY_S[0]
        if self._told:
            self._told = ""
            self._report(f"the SPIFFE agent has given {self.svid.id}")

    def _failed(self, failure: Failure) -> None:
        self._failure = failure
        what = str(failure) if isinstance(failure, AgentLost) else (
            f"an identity from the SPIFFE agent is refused ({failure.rule}): {failure}"
        )
        until = "" if self._svid is None else (
            f"; the one here is good until {time.strftime('%H:%M:%S UTC', time.gmtime(self._svid.not_after))}"
        )
        if what != self._told:  # an agent that stays away is said once
            self._told = what
            self._report(what + until)


def socket_path(text: str) -> str:
    """`unix:///PATH` from that or an absolute path. Raises BadInput: SPIFFE allows TCP, which attests to nobody."""
    path = text.removeprefix("unix:")
    if not path.startswith("/") or "\0" in path or "?" in path or "#" in path:
        raise BadInput("the agent's socket is unix:///PATH", hint='as in "unix:///run/spire/agent.sock"')
    return f"unix:///{path.lstrip('/')}"


def _key(pkcs8: Secret) -> SigningKey:
    try:
        return SigningKey.from_pkcs8(pkcs8)
    except BadInput:
        raise IdentityRefused("the agent's SVID key is not a P-256 key", rule="key type") from None


def _nothing() -> None:
    pass


# --- the door to the client library -----------------------------------------------------------------------------------


def _listen(socket: str, take: Take, lost: Lost) -> Callable[[], None]:
    """Begins a stream of X.509 contexts in a thread of the library's. Raises AgentLost. Blocks; takes 0.4 s once."""
    from spiffe import WorkloadApiClient
    from spiffe.errors import PySpiffeError

    logging.getLogger("spiffe").setLevel(logging.CRITICAL)  # what is wrong is said here, once

    try:
        client = WorkloadApiClient(socket)
    except PySpiffeError:
        raise _lost(socket, "") from None
    stream = client.stream_x509_contexts(
        lambda context: take(_offer(context)), lambda error: lost(_lost(socket, str(error))), retry_connect=False
    )

    def stop() -> None:
        stream.cancel()
        client.close()

    return stop


def _offer(context: object) -> Offer:
    from spiffe.workloadapi.x509_context import X509Context

    assert isinstance(context, X509Context)
    svids = []
    for one in context.x509_svids:
        key = one.private_key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        svids.append((_ders(one.cert_chain), Secret(key)))
    bundles = context.x509_bundle_set.bundles
    return Offer(svids, {str(one.trust_domain.name): sorted(_ders(one.x509_authorities)) for one in bundles})


def _ders(certificates: Iterable[x509.Certificate]) -> list[bytes]:
    return [one.public_bytes(serialization.Encoding.DER) for one in certificates]


def _lost(socket: str, text: str) -> AgentLost:
    """From the library's words, which hold gRPC's status."""
    if "PERMISSION_DENIED" in text:
        return AgentLost(
            f"the SPIFFE agent at {socket} has no identity for this process", reason="no identity", hint=_REGISTER
        )
    if not text or "gRPC error" in text or "stream ended" in text:
        return AgentLost(f"the SPIFFE agent at {socket} does not answer", reason="unreachable", hint=_WHERE)
    return AgentLost(f"the SPIFFE agent at {socket} answers what is no identity", reason="answer", hint=_REGISTER)
