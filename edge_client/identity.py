"""This device's identity: joining through a hop, renewal by the device key, and where its keys are kept.

Two keys: the device key, made once and registered with the gateway, good for getting SVIDs alone; and the SVID key,
new with each SVID. Both lie in the encrypted store, or the device key in the TPM (device_key). What the gateway issues
is believed only after it has been checked against the root that the invitation named.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import msgspec

from edge_client.device_key import DeviceKey, TpmKey, restored, stored
from store.errors import ForeignTpm
from store.settings import Settings
from store.tpm import Tpm
from transport.edge_session import obtain
from transport.errors import IdentityRefused
from transport.identity.join import Invitation, bundle_from_joined_root
from transport.identity.revocation import RevocationList, read_list, stored_list
from transport.identity.source import AgentSource
from transport.identity.svid import SpiffeId, Svid, TrustBundle, make_csr
from transport.identity.verify import VerifiedPeer, check_floor, verify_svid
from transport.initiator import Joining, Renewing
from transport.links.base import Link
from transport.messages import Attest, Issued
from transport.primitives import Secret, SigningKey, sha256
from transport.session import Clock, session_clock

NAMESPACE = "identity"
AGENT_S = 20.0  # for a SPIFFE agent to give the first SVID: somebody waits
_RECORD = "device"
_PENDING = "pending-device-key"
_REVOKED = "revocation-list"


class _Record(msgspec.Struct, array_like=True):
    """The stored form; lives in the encrypted database alone."""

    id: str
    enrolment: int
    device_key: bytes
    svid_key: bytes
    chain: list[bytes]
    roots: list[bytes]
    bundle_sequence: int
    endpoints: list[str]

    def __repr__(self) -> str:
        return "<identity record>"


@dataclass(frozen=True, eq=False)
class DeviceIdentity:
    """Who this device is. `endpoints` are the hop and gateway addresses its invitation gave, best first.

    Without a device key (and enrolment number 0) it is a SPIFFE agent that renews.
    """

    id: SpiffeId
    enrolment: int
    device_key: DeviceKey | None
    svid: Svid
    bundle: TrustBundle
    endpoints: tuple[str, ...]
    revoked: RevocationList = field(default_factory=RevocationList)

    @classmethod
    async def load(cls, settings: Settings, tpm: Tpm | None = None) -> Self | None:
        """The stored identity, or None if this device has not joined. `tpm` is needed to renew, if it has the key."""
        raw = await settings.get(_RECORD)
        if raw is None:
            return None
        record = msgspec.msgpack.decode(raw, type=_Record)
        spiffe_id = SpiffeId.parse(record.id)
        return cls(
            spiffe_id,
            record.enrolment,
            restored(record.device_key, tpm),
            Svid.from_chain(record.chain, SigningKey.from_pkcs8(Secret(record.svid_key))),
            TrustBundle(spiffe_id.trust_domain, tuple(record.roots), record.bundle_sequence),
            tuple(record.endpoints),
            RevocationList() if (held := await settings.get(_REVOKED)) is None else stored_list(held),
        )

    async def save(self, settings: Settings) -> None:
        assert self.device_key is not None
        record = _Record(
            str(self.id),
            self.enrolment,
            stored(self.device_key),
            self.svid.key.to_pkcs8().expose(),
            list(self.svid.chain),
            list(self.bundle.roots),
            self.bundle.sequence,
            list(self.endpoints),
        )
        await settings.put(_RECORD, msgspec.msgpack.encode(record))

    def svid_valid(self, now: float) -> bool:
        """Whether the SVID is within its validity at `now` (unix seconds)."""
        return self.svid.not_before <= now < self.svid.not_after

    def wants_renewal(self, now: float) -> bool:
        """From the half of its life on, or outside it."""
        return not self.svid_valid(now) or now > (self.svid.not_before + self.svid.not_after) / 2

    def verify_gateway(self, chain: Sequence[bytes], now: float) -> VerifiedPeer:
        """Checks a gateway's chain against our bundle and the revocation list, and the clock against our own SVID.

        Raises IdentityRefused.
        """
        check_floor(self.svid.not_before, now)
        peer = verify_svid(chain, self.bundle, role="gateway", now=now)
        self.revoked.check(peer)
        return peer

    async def take_list(self, settings: Settings, data: bytes, now: float) -> None:
        """Keeps a revocation list that a gateway sent, if it is newer. Raises IdentityRefused."""
        taken = read_list(data, self.bundle, now=now, held=self.revoked)
        if taken is not self.revoked:
            await settings.put(_REVOKED, data)


class Identities:
    """Where this device's identity comes from: the store, once it has joined, or a SPIFFE agent, without joining."""

    def __init__(self, settings: Settings, source: AgentSource | None = None, tpm: Tpm | None = None) -> None:
        """`tpm`: where a device key may be."""
        self.settings, self._source, self._tpm = settings, source, tpm
        self.on_change: Callable[[], None] = lambda: None  # the agent has given another
        if source is not None:
            source.on_change.append(lambda: self.on_change())

    @property
    def renewable(self) -> bool:
        """Whether this device asks the gateway for its next SVID; else the agent gives it."""
        return self._source is None

    async def load(self) -> DeviceIdentity | None:
        """None before joining. Raises AgentLost, IdentityRefused; StoreError."""
        if self._source is None:
            return await DeviceIdentity.load(self.settings, self._tpm)
        await self._source.start(AGENT_S)
        svid = self._source.svid
        held = await self.settings.get(_REVOKED)
        return DeviceIdentity(
            svid.id, 0, None, svid, self._source.bundle, (), RevocationList() if held is None else stored_list(held)
        )

    async def close(self) -> None:
        if self._source is not None:
            await self._source.close()


async def join(
    settings: Settings, invitation: Invitation, link: Link, endpoints: tuple[str, ...], *, clock: Clock | None = None,
    tpm: Tpm | None = None,
) -> DeviceIdentity:
    """Redeems an invitation over a fresh link, which it closes, and stores the identity. With `tpm` the device key is
    made in it, and the gateway is shown that. Raises TransportError, TpmError.

    A link lost half-way strands nobody: the device key is stored first and used again by the next attempt, for which
    the gateway gives the same registration while the invitation lasts.
    """
    try:
        device_key, attest = await _joining_key(settings, tpm)
    except BaseException:
        await link.close()
        raise
    svid_key = SigningKey.generate()

    def verify_gateway(chain: Sequence[bytes], now: float) -> VerifiedPeer:
        return verify_svid(chain, bundle_from_joined_root(invitation, chain), role="gateway", now=now)

    purpose = Joining(invitation, device_key.public.spki, make_csr(svid_key), attest)
    clock = clock or session_clock()
    activate = device_key.activate if isinstance(device_key, TpmKey) else None
    issued = await obtain(link, purpose, device_key, verify_gateway, clock, activate)
    if not any(sha256(root) == invitation.root_sha256 for root in issued.roots):
        raise IdentityRefused("the issued bundle lacks the invitation's root", rule="root hash")
    bundle = TrustBundle(invitation.trust_domain, tuple(issued.roots), issued.bundle_sequence)
    svid = _accept(issued, svid_key, bundle, invitation.id, clock())
    identity = DeviceIdentity(invitation.id, issued.enrolment, device_key, svid, bundle, endpoints)
    await identity.save(settings)
    await settings.delete(_PENDING)
    return identity


async def _joining_key(settings: Settings, tpm: Tpm | None) -> tuple[DeviceKey, Attest | None]:
    """The key of an earlier attempt, if it is of the kind that is wanted now, or a new one; and what shows its TPM."""
    pending = await settings.get(_PENDING)
    key = None if pending is None else restored(pending, tpm)
    if tpm is None:
        if not isinstance(key, SigningKey):
            key = SigningKey.generate()
            await settings.put(_PENDING, stored(key))
        return key, None
    made = await asyncio.to_thread(_in_tpm, key, tpm)
    await settings.put(_PENDING, stored(made))
    return made, await asyncio.to_thread(made.evidence)


def _in_tpm(pending: DeviceKey | None, tpm: Tpm) -> TpmKey:
    if isinstance(pending, TpmKey):
        try:
            tpm.sign(pending.blob, bytes(32))
        except ForeignTpm:
            pass
        else:
            return pending
    return TpmKey.make(tpm)


async def renew(
    settings: Settings, identity: DeviceIdentity, link: Link, *, clock: Clock | None = None
) -> DeviceIdentity:
    """Gets and stores the next SVID over a fresh link, which it closes. Works after the old one has run out.

    Raises TransportError; then the stored identity is as it was.
    """
    assert identity.device_key is not None
    svid_key = SigningKey.generate()
    purpose = Renewing(identity.device_key.public.spki, make_csr(svid_key))
    clock = clock or session_clock()
    issued = await obtain(link, purpose, identity.device_key, identity.verify_gateway, clock)
    bundle = identity.bundle
    if issued.bundle_sequence > bundle.sequence:  # never back: an old bundle could bring back a withdrawn root
        bundle = TrustBundle(bundle.trust_domain, tuple(issued.roots), issued.bundle_sequence)
    svid = _accept(issued, svid_key, bundle, identity.id, clock())
    renewed = replace(identity, svid=svid, bundle=bundle, enrolment=issued.enrolment)
    await renewed.save(settings)
    return renewed


def _accept(issued: Issued, key: SigningKey, bundle: TrustBundle, expected: SpiffeId, now: float) -> Svid:
    """The issued SVID, if it is for our key, our ID and leads to the bundle. Raises IdentityRefused."""
    svid = Svid.from_chain(issued.chain, key)
    peer = verify_svid(issued.chain, bundle, role="edge", now=now)
    if peer.id != expected or issued.id != str(expected):
        raise IdentityRefused("the gateway issued an SVID for another ID", rule="issued ID")
    return svid

