"""Whatever is wrong with a certificate: a whole gateway refuses it, its audit says why, the wire does not.

Each case goes through the real session handshake on the session listener and through TLS on the HTTPS listener. The
certificates are signed by the gateway's own intermediate, so that nothing but the one defect keeps them out.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from relay.gateway import app
from relay.gateway.config import parse
from relay.gateway.identity.ca import Authority
from tests.support.ca import DAY, Ca, key_usage
from tests.support.gateway_lab import DOMAIN, PASSPHRASE, audit_lines, make_folder
from tests.support.mock_provider import KEY
from transport.edge_session import EdgeSession
from transport.errors import IdentityExpired, TransportError
from transport.identity.svid import Svid
from transport.identity.tls import client_context, client_refusal, load_svid
from transport.identity.verify import VerifiedPeer, verify_svid
from transport.initiator import SvidLogin
from transport.links.base import Endpoint, Link, connect

NOW = time.time()
CONFIG = """
trust_domain = "field.example"
[listen]
session = "tcp:127.0.0.1:0"
https = "127.0.0.1:0"
[provider]
base_url = "http://127.0.0.1:1/v1"
key_file = "provider.key"
[[allow]]
id = "/edge/*"
models = ["small"]
"""


@dataclass
class Running:
    directory: Path
    ready: app.Ready
    ca: Ca
    authority: Authority

    async def reason(self, *events: str) -> str:
        """Of the one refusal that is written next."""
        while not (found := [line for line in self._audit() if line["event"] in events]):  # noqa: ASYNC110 - a file
            await asyncio.sleep(0)
        self._seen += len(self._audit())
        assert len(found) == 1
        return str(found[0]["reason"])

    _seen: int = field(default=0)

    def _audit(self) -> list[dict[str, Any]]:
        return audit_lines(self.directory / app.AUDIT_FILE)[self._seen:]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("refused") / "gateway", now=NOW - 10 * DAY)


@contextlib.asynccontextmanager
async def serving(made: Path) -> AsyncIterator[Running]:
    (made / "provider.key").write_text(KEY)
    (made / "provider.key").chmod(0o600)
    authority = Authority.open(made, PASSPHRASE)
    ca = Ca(DOMAIN, now=NOW)
    ca.signer_key, ca.signer = authority._key.private_key, authority._certificate
    ca.intermediates = (authority._der,)
    stop, told = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(app.serve(parse(CONFIG.encode(), made), PASSPHRASE, ready=told.set_result, stop=stop))
    await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
    try:
        async with asyncio.timeout(60):
            yield Running(made, await told, ca, authority, len(audit_lines(made / app.AUDIT_FILE)))
    finally:
        stop.set()
        await task


URI = f"spiffe://{DOMAIN}"
Make = Callable[[Ca, str], Svid]
CASES: list[tuple[str, Make, str, str]] = [
    # what is wrong, a certificate of that role/name, the reason in the audit: of the session, of TLS
    ("wrong CA", lambda ca, path: Ca(DOMAIN, now=NOW).issue(path), "root", "root"),
    ("expired", lambda ca, path: ca.issue(path, start=-7200, lifetime=3600), "expired", "expired"),
    ("a day behind", lambda ca, path: ca.issue(path, start=-DAY, lifetime=3600), "expired", "expired"),
    ("not yet valid", lambda ca, path: ca.issue(path, start=3600), "not yet valid", "not yet valid"),
    ("a day ahead", lambda ca, path: ca.issue(path, start=DAY), "not yet valid", "not yet valid"),
    ("two URIs", lambda ca, path: ca.issue(path, uris=[f"{URI}/{path}", f"{URI}/{path}2"]),
     "exactly one URI SAN", "exactly one URI SAN"),
    ("DNS only", lambda ca, path: ca.issue(path, uris=[], dns=["pi.example"]),
     "exactly one URI SAN", "exactly one URI SAN"),
    ("CA as leaf", lambda ca, path: ca.issue(path, ca=True), "CA as leaf", "CA as leaf"),
    ("key for encipherment", lambda ca, path: ca.issue(path, usage=key_usage("key_encipherment")),
     "key usage digitalSignature", "purpose"),
    ("key for certificates", lambda ca, path: ca.issue(path, usage=key_usage("digital_signature", "key_cert_sign")),
     "key usage keyCertSign", "key usage keyCertSign"),
    ("foreign trust domain", lambda ca, path: ca.issue(path, uris=[f"spiffe://other.example/{path}"]),
     "trust domain", "trust domain"),
    ("wrong role", lambda ca, path: ca.issue("gateway" + path[path.index("/"):]), "role", "role"),
    ("a role that begins like it", lambda ca, path: ca.issue(path.replace("/", "s/")), "role", "role"),
    ("no SPIFFE ID", lambda ca, path: ca.issue(path, uris=[f"https://{DOMAIN}/{path}"]), "ID scheme", "ID scheme"),
]


class Tapped:
    """A link that counts what comes from the gateway."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.peer, self.send, self.close = link.peer, link.send, link.close
        self.came = 0

    async def receive(self) -> bytes:
        data = await self._link.receive()
        self.came += len(data)
        return data


async def in_session(gateway: Running, svid: Svid) -> tuple[str, int]:
    """What a client with that SVID learns: its error's text, and how many bytes came."""
    def check(chain: Any, now: float) -> VerifiedPeer:
        return verify_svid(chain, gateway.authority.bundle, role="gateway", now=now)

    link = Tapped(await connect(Endpoint.parse(gateway.ready.session)))
    session = EdgeSession(link, SvidLogin(svid.chain, NOW + DAY), svid.key, check)
    with pytest.raises(TransportError) as caught:
        await session.open()
    return f"{caught.value.code}: {caught.value}", link.came


async def test_a_session_is_refused_for_each_reason_and_says_none(made: Path) -> None:
    async with serving(made) as gateway:
        learned = {}
        for what, make, reason, _ in CASES:
            learned[what] = await in_session(gateway, make(gateway.ca, "edge/lap-1"))
            assert await gateway.reason("session.refused") == reason, what
        assert len(set(learned.values())) == 1, learned
        # Good in itself, but not on record: the handshake is over, so this is said inside it.
        assert "peer_refused" in (await in_session(gateway, gateway.ca.issue("edge/lap-1")))[0]
        assert await gateway.reason("session.refused") == "serial"


async def by_tls(gateway: Running, context: ssl.SSLContext) -> tuple[str, bytes]:
    """What a TLS client learns: all that it can decrypt after its own last message, and how the connection ended."""
    host, _, port = gateway.ready.https.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    came, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls, after, ended = context.wrap_bio(came, to_send), b"", ""
    finished = False
    with contextlib.suppress(ConnectionError):
        while True:
            try:
                if not finished:
                    tls.do_handshake()
                    finished = True
                after += tls.read(4096)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                ended = str(error.reason)
                break
            writer.write(to_send.read())
            await writer.drain()
            data = await reader.read(65536)
            if not data:
                break
            came.write(data)
    writer.close()
    return ended, after


def tls_client(gateway: Running, svid: Svid | None) -> ssl.SSLContext:
    return client_context(gateway.authority.bundle, svid)


async def test_tls_refuses_for_each_reason_and_says_none(made: Path) -> None:
    async with serving(made) as gateway:
        learned = {}
        for what, make, _, reason in CASES:
            learned[what] = await by_tls(gateway, tls_client(gateway, make(gateway.ca, "hop/pi")))
            assert await gateway.reason("https.refused") == reason, what
        assert set(learned.values()) == {("", b"")}, learned
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode, old.maximum_version = False, ssl.CERT_NONE, ssl.TLSVersion.TLSv1_2
        load_svid(old, gateway.ca.issue("hop/pi"))
        await by_tls(gateway, old)
        assert await gateway.reason("https.refused") == "TLS version"


async def test_a_tunnel_needs_a_certificate_that_is_on_record(made: Path) -> None:
    async with serving(made) as gateway:
        answers = []
        for svid, reason in (
            (None, "certificate"), (gateway.ca.issue("hop/pi"), "serial"), (gateway.ca.issue("workload/pi"), "role"),
            (gateway.ca.issue("edge/pi"), "role"),
        ):
            connector = aiohttp.TCPConnector(ssl=tls_client(gateway, svid))
            async with aiohttp.ClientSession(connector=connector) as client, client.get(
                f"https://{gateway.ready.https}/v1/tunnel"
            ) as response:
                answers.append((response.status, await response.read()))
            assert await gateway.reason("tunnel.refused") == reason
        assert len(set(answers)) == 1 and answers[0][0] == 403


@pytest.mark.parametrize(("off", "words"), [(DAY, "clock here is probably ahead"),
                                            (-DAY, "clock here is probably behind")])
async def test_a_device_whose_clock_is_a_day_off_is_told_whose(made: Path, off: float, words: str) -> None:
    async with serving(made) as gateway:
        svid = gateway.ca.issue("edge/lap-1", start=off - 300)

        def check(chain: Any, now: float) -> VerifiedPeer:
            return verify_svid(chain, gateway.authority.bundle, role="gateway", now=now)

        link = await connect(Endpoint.parse(gateway.ready.session))
        login = SvidLogin(svid.chain, NOW + 2 * DAY)
        session = EdgeSession(link, login, svid.key, check, clock=lambda: time.time() + off)
        with pytest.raises(IdentityExpired) as caught:
            await session.open()
        assert words in (caught.value.hint or "")


@pytest.mark.parametrize(("off", "words"), [(DAY, "clock here was probably set back"),
                                            (-DAY, "the peer's clock is probably behind")])
def test_a_gateway_tells_whose_clock_it_suspects(off: float, words: str) -> None:
    ca = Ca(DOMAIN, now=NOW, intermediate_start=-3 * DAY, root_lifetime=90 * DAY)
    with pytest.raises(IdentityExpired) as caught:
        verify_svid(ca.issue("edge/a", start=off).chain, ca.bundle(), role="edge", now=NOW)
    assert words in (caught.value.hint or "")


def test_what_is_no_refusal_of_ours_leaves_no_record() -> None:
    for error in (ConnectionResetError(), TimeoutError(), ssl.SSLError(1, "x")):
        assert client_refusal(error) is None
