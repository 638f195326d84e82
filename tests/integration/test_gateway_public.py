"""The public listener of a whole gateway: its certificate, and an edge's session through the page's tunnel."""

import asyncio
import contextlib
import datetime
import ssl
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from relay.gateway import app, webpki
from relay.gateway.config import parse
from relay.gateway.control import call
from relay.gateway.errors import ConfigError
from relay.gateway.listening import HttpsLimits
from relay.gateway.webpki import public_context, stay_current
from tests.support.dpop_page import DpopPage
from tests.support.gateway_lab import DOMAIN, PASSPHRASE, chat, make_folder
from tests.support.mock_provider import KEY, MockProvider
from tests.support.relay_process import Gateway, gateway_process
from transport.edge_session import EdgeSession, obtain
from transport.errors import LinkLost
from transport.identity.join import Invitation, bundle_from_joined_root
from transport.identity.svid import Svid, TrustBundle, make_csr
from transport.identity.verify import VerifiedPeer, verify_svid
from transport.initiator import Joining, SvidLogin
from transport.links.websocket import WebSocketLink
from transport.messages import RequestHeader, encode_header
from transport.primitives import SigningKey, random_bytes

LIMIT = 60.0
CONFIG = """
trust_domain = "field.example"
[listen]
session = "tcp:127.0.0.1:0"
public = "127.0.0.1:0"
[public]
origin = "https://gw.example"
cert_file = "public.pem"
key_file = "public.key"
[provider]
base_url = "http://127.0.0.1:9/v1"
key_file = "provider.key"
"""


def write_certificate(folder: Path, name: str = "gw.example", *, password: bytes | None = None) -> bytes:
    """A certificate that signs itself, as PEM in `folder`; returns it as DER."""
    folder.mkdir(exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "public.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    sealed = serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password)
    (folder / "public.key").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealed
    ))
    return certificate.public_bytes(serialization.Encoding.DER)


async def test_a_gateway_shows_browsers_its_public_certificate(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "g")
    (folder / "provider.key").write_text(KEY)
    write_certificate(folder)
    stop, told = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(app.serve(parse(CONFIG.encode(), folder), PASSPHRASE, ready=told.set_result, stop=stop))
    await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
    ready = told.result()
    trusting = ssl.create_default_context(cafile=str(folder / "public.pem"))
    try:
        answer = await call(folder, "invite", {"path": "hop/phone-1"})
        assert answer["url"] == f"https://gw.example/hop#{answer['invitation']}"
        connector = aiohttp.TCPConnector(ssl=trusting, force_close=True)
        async with asyncio.timeout(LIMIT), aiohttp.ClientSession(connector=connector) as client:
            page = DpopPage(client, "https://gw.example", f"https://{ready.public}", server_hostname="gw.example")
            await page.greet()
            assert (await page.join(answer["invitation"]))[0] == 200
            socket = await page.open()
            assert await socket.receive_json() == {"id": f"spiffe://{DOMAIN}/hop/phone-1"}
            assert socket.get_extra_info("ssl_object").version() == "TLSv1.3"
            await socket.close()
        host, _, port = ready.public.rpartition(":")
        trusting.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(host, int(port), ssl=trusting, server_hostname="gw.example")
    finally:
        stop.set()
        await asyncio.wait_for(task, LIMIT)


async def test_a_renewed_certificate_is_shown_and_a_bad_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(webpki, "CHECK_S", 0.0)
    first = write_certificate(tmp_path)
    files = (tmp_path / "public.pem", tmp_path / "public.key")
    context = public_context(*files)
    staying = asyncio.create_task(stay_current(context, *files))
    assert await shown(context) == first
    second = write_certificate(tmp_path)
    async with asyncio.timeout(LIMIT):
        while await shown(context) != second:
            pass
        (tmp_path / "public.pem").write_text("half a certi")
        while "is not used" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert await shown(context) == second
        assert caplog.text.count("is not used") == 1, "it is said once, not each minute"
        caplog.clear()
        write_certificate(tmp_path / "next")
        files[0].write_bytes((tmp_path / "next" / "public.pem").read_bytes())  # and its key is yet to come
        while "is not used" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert await shown(context) == second
        files[0].unlink()
        third = write_certificate(tmp_path)
        while await shown(context) != third:
            pass
    staying.cancel()


async def shown(context: ssl.SSLContext) -> bytes:
    """The certificate that a new connection gets, without a network."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(to_client, to_server), context.wrap_bio(to_server, to_client, server_side=True))
    for _ in range(4):
        await asyncio.sleep(0)
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return ends[0].getpeercert(binary_form=True) or b""


@pytest.mark.parametrize("mistake", ["none", "no key", "another's key", "encrypted", "no PEM"])
def test_files_that_are_no_certificate_and_key_are_refused(tmp_path: Path, mistake: str) -> None:
    if mistake != "none":
        write_certificate(tmp_path, password=b"secret" if mistake == "encrypted" else None)
    certificate = tmp_path / "public.pem"
    if mistake == "no key":
        (tmp_path / "public.key").unlink()
    elif mistake == "another's key":
        kept = certificate.read_bytes()
        write_certificate(tmp_path)
        certificate.write_bytes(kept)
    elif mistake == "no PEM":
        certificate.write_bytes(b"\0\xff")
    with pytest.raises(ConfigError, match=r"public: cannot use") as refused:
        public_context(certificate, tmp_path / "public.key")
    assert refused.value.hint and "secret" not in str(refused.value)


# --- an edge's session through a page's tunnel ------------------------------------------------------------------------


async def test_an_edge_joins_and_asks_through_a_page(tmp_path: Path) -> None:
    """The page carries bytes alone: here the tunnel's binary frames are the edge's link."""
    async with (
        MockProvider() as provider, gateway_process(tmp_path / "g", provider.base_url) as gateway,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as client, asyncio.timeout(LIMIT),
    ):
        page = DpopPage(client, gateway.origin, gateway.origin)
        await page.greet()
        assert (await page.join((await gateway.page_url("phone-1")).partition("#")[2]))[0] == 200
        invitation, device, key = await gateway.invite("edge/lap-1"), SigningKey.generate(), SigningKey.generate()

        def check(chain: Any, now: float) -> VerifiedPeer:
            return verify_svid(chain, bundle_from_joined_root(invitation, chain), role="gateway", now=now)

        issued = await obtain(
            await tunnel(page), Joining(invitation, device.public.spki, make_csr(key)), device, check
        )
        bundle = TrustBundle(DOMAIN, tuple(issued.roots), issued.bundle_sequence)
        svid = Svid.from_chain(issued.chain, key)
        session = await EdgeSession(
            await tunnel(page), SvidLogin(svid.chain, svid.not_after), svid.key,
            lambda chain, now: verify_svid(chain, bundle, role="gateway", now=now),
        ).open()
        assert session.welcome.via == f"spiffe://{DOMAIN}/hop/phone-1"
        body = chat()
        header = encode_header(RequestHeader(
            "POST", "/v1/chat/completions", "application/json", "", len(body), int(time.time()) + 600
        ))
        answer = await session.request(random_bytes(16), header, body).started()
        assert b"".join([part async for part in answer])
        await session.close()
        assert await statuses(gateway) == {"edge/lap-1": "active", "hop/phone-1": "active"}


async def test_a_page_that_is_revoked_carries_nothing_any_more(tmp_path: Path) -> None:
    async with (
        gateway_process(tmp_path / "g", "http://127.0.0.1:9/v1") as gateway,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as client, asyncio.timeout(LIMIT),
    ):
        page = DpopPage(client, gateway.origin, gateway.origin)
        await page.greet()
        await page.join((await gateway.page_url("phone-1")).partition("#")[2])
        link = await tunnel(page)
        await link.send(b"\0")  # of a handshake that stays half-open
        await call(gateway.folder, "revoke", {"who": "hop/phone-1", "reason": "lost"})
        with pytest.raises(LinkLost):
            while await link.receive():
                pass
        assert (await page.renew())[1]["error"]["code"] == "refused"
        assert (await (await page.open()).receive_json())["error"]["code"] == "refused"


async def test_a_proxy_stands_for_many(tmp_path: Path) -> None:
    """All who come by it have its address: more than one source's share of the places."""
    async with gateway_process(tmp_path / "g", "http://127.0.0.1:9/v1") as gateway, asyncio.timeout(LIMIT):
        host, _, port = gateway.origin.removeprefix("http://").rpartition(":")
        idle = [await asyncio.open_connection(host, int(port)) for _ in range(HttpsLimits().per_source + 1)]
        async with aiohttp.ClientSession() as client, client.get(f"{gateway.origin}/hop") as response:
            assert response.status == 200
        for _, writer in idle:
            writer.close()


async def tunnel(page: DpopPage) -> WebSocketLink:
    socket = await page.open()
    assert "id" in await socket.receive_json()
    return WebSocketLink(socket, "page")


async def statuses(gateway: Gateway) -> dict[str, str]:
    devices = (await call(gateway.folder, "devices", {}))["devices"]
    return {one["id"].removeprefix(f"spiffe://{DOMAIN}/"): one["status"] for one in devices}


async def test_what_the_code_says_is_the_page_with_the_invitation(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "g", "http://127.0.0.1:9/v1") as gateway, aiohttp.ClientSession() as client:
        url, _, fragment = (await gateway.page_url("phone-1")).partition("#")
        assert url == f"{gateway.origin}/hop"
        assert str(Invitation.parse(fragment).id) == f"spiffe://{DOMAIN}/hop/phone-1"
        async with client.get(url) as response:
            assert response.status == 200
            assert f"ws://{gateway.origin.removeprefix('http://')};" in response.headers["Content-Security-Policy"]
