"""A hop's identity: joining by HTTPS with an invitation, renewal with the device key, and the sealed file between runs.

The device key is sealed before the first request leaves, so that a join whose answer got lost can be repeated with the
same key, which the gateway allows until the invitation ends.
"""

import asyncio
import base64
import binascii
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
import msgspec

from relay.hop.errors import GatewayAnswer, HopMisuse, JoinRefused
from store.errors import StoreMissing
from store.files import write_private
from store.keys import Passphrase
from store.sealed import open_file, seal_file
from transport.errors import BadInput, IdentityRefused, LinkLost
from transport.identity.join import (
    DEVICE_LABEL,
    HttpsOperation,
    Invitation,
    bundle_from_joined_root,
    https_transcript,
    signed_input,
)
from transport.identity.revocation import RevocationList, stored_list
from transport.identity.source import AgentSource
from transport.identity.svid import Svid, TrustBundle, make_csr
from transport.identity.tls import NOTHING_REVOKED, client_context, peer_of, refusal_in, unverified_context
from transport.identity.verify import VerifiedPeer, check_floor, verify_svid
from transport.links.base import Endpoint
from transport.primitives import Secret, SigningKey, sha256

ROLE: Final = "hop"
PURPOSE: Final = "causeway hop identity"
FILE: Final = "identity.sealed"
LIST_FILE: Final = "revocations.list"
TIMEOUT_S: Final = 15.0
ANSWER_MAX: Final = 64 * 1024  # bytes of a JSON answer
ROOTS_MAX: Final = 8
NONCE_LEN: Final = 32

_ASK: Final = "ask whoever runs the gateway; its log names the reason"
_HINTS: Final = {
    "invitation": "it is used up, expired or was for another device: ask for a new one",
    "overloaded": "try again in a minute",
    "unavailable": "try again in a minute",
}
_Answer = TypeVar("_Answer")
_CODE = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII)


class _Bundle(msgspec.Struct):
    trust_domain: str
    roots: list[str]
    sequence: int


class _Nonce(msgspec.Struct):
    nonce: str


class _Issued(msgspec.Struct):
    id: str
    chain: list[str]
    bundle: _Bundle
    enrolment: int


class _List(msgspec.Struct):
    list: str


class _ErrorBody(msgspec.Struct):
    code: str


class _Error(msgspec.Struct):
    error: _ErrorBody


class _Sealed(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What the file holds. `svid_key` is empty until the gateway has answered."""

    version: int
    gateway: str
    device_key: bytes
    enrolment: int = 0
    svid_key: bytes = b""
    chain: list[bytes] = []
    trust_domain: str = ""
    roots: list[bytes] = []
    sequence: int = 0

    def __repr__(self) -> str:  # it holds the keys
        return "<Sealed>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []


@dataclass(frozen=True)
class HopIdentity:
    """Who this hop is. `gateway` is the base URL it joined at. Without a device key an agent renews."""

    device_key: SigningKey | None
    svid: Svid
    bundle: TrustBundle
    enrolment: int
    gateway: str

    def half_life(self) -> float:
        """When to renew, in unix seconds."""
        return (self.svid.not_before + self.svid.not_after) / 2


class HopHome:
    """The folder that keeps a hop's sealed identity; without a passphrase only the revocation list that it carries."""

    def __init__(self, folder: Path, passphrase: Passphrase | None) -> None:
        self._folder = folder
        self._path = folder / FILE
        self._passphrase = passphrase

    def load(self) -> HopIdentity:
        """Raises HopMisuse if this hop has not joined, StoreError (WrongKey and others)."""
        sealed = self._read()
        if sealed is None or not sealed.svid_key:
            raise HopMisuse(f"this hop has not joined: no identity in {self._folder}", hint="run relay hop join first")
        try:
            svid = Svid.from_chain(sealed.chain, SigningKey.from_pkcs8(Secret(sealed.svid_key)))
            bundle = TrustBundle(sealed.trust_domain, tuple(sealed.roots), sealed.sequence)
            device_key = SigningKey.from_pkcs8(Secret(sealed.device_key))
        except (BadInput, IdentityRefused):
            raise _unreadable() from None
        return HopIdentity(device_key, svid, bundle, sealed.enrolment, sealed.gateway)

    def device_key(self, gateway: str) -> SigningKey:
        """The key to join with: the one of an unfinished attempt, or a new one, sealed. Raises HopMisuse if joined."""
        sealed = self._read()
        if sealed is not None and sealed.svid_key:
            raise HopMisuse(f"this hop has joined already: {self._path}", hint="choose another --home, or move it away")
        if sealed is not None:
            return SigningKey.from_pkcs8(Secret(sealed.device_key))
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = SigningKey.generate()
        self._write(_Sealed(1, gateway, key.to_pkcs8().expose()))
        return key

    def save(self, identity: HopIdentity) -> None:
        """Seals the identity (0.2 s of key derivation). Raises StoreError."""
        assert identity.device_key is not None
        self._write(_Sealed(
            1, identity.gateway, identity.device_key.to_pkcs8().expose(), identity.enrolment,
            identity.svid.key.to_pkcs8().expose(), list(identity.svid.chain),
            identity.bundle.trust_domain, list(identity.bundle.roots), identity.bundle.sequence,
        ))

    def carried(self) -> RevocationList:
        """The revocation list that this hop has kept; an empty one if there is none. It was checked when it came."""
        try:
            return stored_list((self._folder / LIST_FILE).read_bytes())
        except (OSError, IdentityRefused):
            return RevocationList()

    def carry(self, revoked: RevocationList) -> None:
        """Keeps a list for the next run. It is signed, so it is not sealed. Raises StoreError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self._folder / LIST_FILE, [revoked.data], replace=True)

    def _read(self) -> _Sealed | None:
        assert self._passphrase is not None
        try:
            sealed = msgspec.msgpack.decode(open_file(self._path, self._passphrase, purpose=PURPOSE), type=_Sealed)
        except StoreMissing:
            return None
        except msgspec.MsgspecError:
            raise _unreadable() from None
        if sealed.version != 1:
            raise _unreadable()
        return sealed

    def _write(self, sealed: _Sealed) -> None:
        assert self._passphrase is not None
        seal_file(self._path, msgspec.msgpack.encode(sealed), self._passphrase, purpose=PURPOSE)


def of_agent(source: AgentSource, gateway: str) -> HopIdentity:
    """The identity that a SPIFFE agent has for this hop just now. Raises AgentLost."""
    return HopIdentity(None, source.svid, source.bundle, 0, gateway)


def base_url(text: str) -> str:
    """`https://HOST:PORT` from what a person gives: https:// or wss://, without a path. Raises HopMisuse."""
    scheme, _, rest = text.strip().partition("://")
    host = rest.rstrip("/")
    if scheme not in ("https", "wss") or "/" in host:
        raise HopMisuse("the gateway's address is not one", hint="it looks like https://HOST:PORT or wss://HOST:PORT")
    try:
        Endpoint.parse(f"wss://{host}")
    except BadInput:
        raise HopMisuse("the gateway's address is not one", hint="it looks like https://HOST:PORT") from None
    return f"https://{host}"


async def join(
    home: HopHome, invitation: Invitation, gateway: str, *, clock: Callable[[], float] = time.time
) -> HopIdentity:
    """Joins at `gateway` (a base URL) and seals the identity.

    The secret of the invitation is sent only over TLS to a `/gateway/` SVID under the root the invitation names. Raises
    IdentityRefused, JoinRefused, GatewayAnswer, LinkLost, HopMisuse, StoreError.
    """
    if invitation.id.role != ROLE:
        raise HopMisuse(f"the invitation is not one for a hop but for {invitation.role_path}",
                        hint="ask for an invitation made by `relay gateway invite hop/NAME`")
    device_key = await asyncio.to_thread(home.device_key, gateway)  # seals: 0.2 s of key derivation
    async with _talking(unverified_context(), gateway) as stranger:
        public = await stranger.call("GET", "/v1/bundle", None, _Bundle)
    named = [der for der in _unpack_all(public.roots) if sha256(der) == invitation.root_sha256]
    bundle = bundle_from_joined_root(invitation, named)
    key = SigningKey.generate()
    body = {"token_id": pack(invitation.token_id), "secret": pack(invitation.secret.expose()),
            "device_key": pack(device_key.public.spki)}
    async with _talking(client_context(bundle), gateway) as server:
        issued = await _obtain(server, HttpsOperation.JOIN, invitation.token_id, body, device_key, key)
    identity = _identity(issued, key, bundle, device_key, gateway, clock())
    if identity.svid.id != invitation.id:
        raise GatewayAnswer("the gateway issued another identity than the one invited")
    await asyncio.to_thread(home.save, identity)
    return identity


async def renew(
    home: HopHome, identity: HopIdentity, gateway: str, *, clock: Callable[[], float] = time.time,
    revoked: RevocationList = NOTHING_REVOKED,
) -> HopIdentity:
    """A new SVID with a new key, by the device key alone: the old SVID may have run out. Seals it; raises as `join`.

    A gateway that is `revoked` gives none: with it comes a trust bundle.
    """
    assert identity.device_key is not None
    check_floor(identity.svid.not_before, clock())
    key = SigningKey.generate()
    device_id = sha256(identity.device_key.public.spki)
    body = {"device_id": pack(device_id)}
    async with _talking(client_context(identity.bundle, revoked=revoked), gateway) as server:
        issued = await _obtain(server, HttpsOperation.RENEW, device_id, body, identity.device_key, key)
    renewed = _identity(issued, key, identity.bundle, identity.device_key, gateway, clock())
    if renewed.svid.id != identity.svid.id:
        raise GatewayAnswer("the gateway issued another identity than the one renewed")
    renewed = replace(renewed, gateway=identity.gateway)
    await asyncio.to_thread(home.save, renewed)
    return renewed


async def exchange_list(identity: HopIdentity, gateway: str, held: RevocationList) -> bytes:
    """Gives a gateway the revocation list that this hop carries, and takes the gateway's; b"" if it has none.

    Raises IdentityRefused, LinkLost, GatewayAnswer, JoinRefused.
    """
    async with _talking(client_context(identity.bundle, identity.svid, revoked=held), gateway) as server:
        return unpack((await server.call("POST", "/v1/revocations", {"list": pack(held.data)}, _List)).list)


async def _obtain(
    server: "_Server", operation: HttpsOperation, subject: bytes, body: dict[str, str], device_key: SigningKey,
    key: SigningKey,
) -> _Issued:
    """The two requests in which `key` gets its SVID: a nonce, then the request that the device key signs over it.

    The signature names the server by the certificate seen with the nonce. Should the second request need a connection
    of its own and meet another certificate there, the gateway refuses, and the whole may be tried again.
    """
    nonce = unpack((await server.call("POST", "/v1/join/nonce", {}, _Nonce)).nonce)
    if len(nonce) != NONCE_LEN:
        raise GatewayAnswer("the gateway's nonce has the wrong length")
    assert server.seen is not None  # `client_context` makes no connection without it
    csr = make_csr(key)
    h = https_transcript(operation, nonce, csr, subject, server.seen.leaf_sha256)
    signature = device_key.sign(signed_input(DEVICE_LABEL, h, sha256(device_key.public.spki)))
    proof = {"csr": pack(csr), "nonce": pack(nonce), "signature": pack(signature)}
    return await server.call("POST", f"/v1/{operation.name.lower()}", body | proof, _Issued)


def _identity(
    issued: _Issued, key: SigningKey, bundle: TrustBundle, device_key: SigningKey, gateway: str, now: float
) -> HopIdentity:
    """Checks what was issued as if a stranger had sent it: the chain under the bundle, the role, the key."""
    new = _newer(bundle, issued.bundle)
    chain = [der for der in _unpack_all(issued.chain) if der not in new.roots]
    peer = verify_svid(chain, new, role=ROLE, now=now)
    svid = Svid.from_chain(chain, key)
    if str(peer.id) != issued.id:
        raise GatewayAnswer("the gateway's answer contradicts itself")
    return HopIdentity(device_key, svid, new, issued.enrolment, gateway)


def _newer(held: TrustBundle, offered: _Bundle) -> TrustBundle:
    """Sequence numbers never go back; the trust domain never changes; who joins keeps the root it was invited to."""
    roots = _unpack_all(offered.roots)
    if offered.trust_domain != held.trust_domain:
        raise IdentityRefused("the gateway answered with a bundle of another trust domain", rule="trust domain")
    if offered.sequence <= held.sequence and held.sequence > 0:
        return held
    if not roots or offered.sequence < 0:
        raise GatewayAnswer("the gateway's trust bundle is not valid")
    if held.sequence == 0 and not set(held.roots) <= set(roots):  # it holds the invitation's root, and only that
        raise IdentityRefused("the gateway's trust bundle lacks the root that the invitation names", rule="root hash")
    return TrustBundle(held.trust_domain, tuple(roots), offered.sequence)


class _Response(aiohttp.ClientResponse):
    """Remembers who sent it: once its body is read, the connection is gone."""

    server: VerifiedPeer | None = None

    async def start(self, connection: aiohttp.connector.Connection) -> "aiohttp.ClientResponse":
        self.server = peer_of(connection.transport)
        return await super().start(connection)


class _Server:
    """The gateway over one connection at a time. `seen` is its SVID on the latest, None if the context checks none."""

    def __init__(self, session: aiohttp.ClientSession, gateway: str) -> None:
        self._session, self._gateway = session, gateway
        self.seen: VerifiedPeer | None = None

    async def call(self, method: str, path: str, body: object, answer: type[_Answer]) -> _Answer:
        """JSON out, a checked struct in. Raises LinkLost, IdentityRefused, GatewayAnswer, JoinRefused."""
        try:
            async with self._session.request(
                method, self._gateway + path, json=body, allow_redirects=False
            ) as response:
                assert isinstance(response, _Response)
                self.seen = response.server
                data = await _read_bounded(response)
                status = response.status
        except TimeoutError:
            raise LinkLost("the gateway did not answer in time", hint="is it in reach?") from None
        except (OSError, aiohttp.ClientError) as error:
            refusal = refusal_in(error)
            if refusal is not None:
                raise refusal from None
            raise LinkLost("cannot reach the gateway", hint="is the address right, and the gateway running?") from error
        return _decoded(status, data, answer)


@asynccontextmanager
async def _talking(context: ssl.SSLContext, gateway: str) -> AsyncIterator[_Server]:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    connector = aiohttp.TCPConnector(ssl=context, limit=1)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, trust_env=False, response_class=_Response
    ) as session:
        yield _Server(session, gateway)


def _decoded(status: int, data: bytes, answer: type[_Answer]) -> _Answer:
    try:
        if status == 200:
            return msgspec.json.decode(data, type=answer)
        reason = msgspec.json.decode(data, type=_Error).error.code
    except (msgspec.MsgspecError, RecursionError):
        raise GatewayAnswer(f"the gateway answered {status} with something else than expected",
                            hint="is this really the gateway's address?") from None
    reason = reason if _CODE.fullmatch(reason) else "other"
    raise JoinRefused(f"the gateway refused: {reason}", reason=reason, hint=_HINTS.get(reason, _ASK))


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for part in response.content.iter_chunked(8192):
        data += part
        if len(data) > ANSWER_MAX:
            raise GatewayAnswer("the gateway's answer is too long")
    return bytes(data)


def pack(data: bytes) -> str:
    """base64url without padding (RFC 4648 section 5)."""
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def unpack(text: str) -> bytes:
    """The bytes of base64url without padding. Raises GatewayAnswer."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise GatewayAnswer("the gateway's answer is not valid") from None
    return data


def _unpack_all(texts: Sequence[str]) -> list[bytes]:
    if len(texts) > ROOTS_MAX:
        raise GatewayAnswer("the gateway's answer has too many certificates")
    return [unpack(text) for text in texts]


def _unreadable() -> HopMisuse:
    return HopMisuse("the identity file cannot be read by this version", hint="move it away and join again")
