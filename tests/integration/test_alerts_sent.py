"""Alerts that leave the gateway: signed, once, in order, to whoever takes them and whenever they do."""

import asyncio
import json
import os
import re
import shutil
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.gateway.anomaly import sending
from relay.gateway.anomaly.receivers import receivers_of
from relay.gateway.anomaly.sending import NotTaken, Sending
from relay.gateway.anomaly.settings import AlertSettings, checked_alerts
from relay.gateway.anomaly.syslog import Syslog, message
from relay.gateway.anomaly.webhook import Webhook, secret_from_file, signed
from relay.gateway.audit.log import AuditLog
from relay.gateway.errors import ConfigError
from relay.gateway.identity.alerts import WORDS, Alert, Alerts
from relay.gateway.state.sqlcipher import open_state
from store.database import Database
from tests.support.gateway_lab import PASSPHRASE, Clock
from tests.support.resuming_edge import until
from transport.primitives import Secret

ROOT = Path(__file__).resolve().parent.parent.parent
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def secret(tmp_path: Path) -> Secret:
    path = tmp_path / "webhook.secret"
    path.write_text(SECRET + "\n")
    return secret_from_file(path)


@pytest.fixture
def database(made: Path, tmp_path: Path) -> Any:
    shutil.copytree(made, tmp_path / "gateway")
    with open_state(tmp_path / "gateway", PASSPHRASE) as database:
        database.run_sync(lambda connection: connection.execute(
            "INSERT INTO registrations (enrolment, spiffe_id, device_id, device_spki, status, created, last_seen)"
            " VALUES (1, 'spiffe://field.example/edge/lap-1', zeroblob(32), zeroblob(91), 'active', 0, 0)"
        ) and None)
        yield database


class Mailbox:
    """A receiver that takes what it is told to take."""

    def __init__(self) -> None:
        self.tries: list[str] = []
        self.taken: list[dict[str, Any]] = []
        self.takes = True

    async def send(self, id: str, body: bytes, now: float) -> None:
        self.tries.append(id)
        await asyncio.sleep(0)
        if not self.takes:
            raise NotTaken("it answered 503")
        self.taken.append(json.loads(body))


async def give(
    database: Database, tmp_path: Path, *senders: Sending, kinds: tuple[Any, ...] = ("quarantined",)
) -> None:
    audit = AuditLog(tmp_path / "a.jsonl")
    alerts = Alerts(database, audit)
    alerts.senders += senders
    for kind in kinds:
        await alerts.give(kind, "spiffe://field.example/edge/lap-1", 1, reasons="rate 50", token="t0ken")
    await audit.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "FIRST_S", 0.001)
    monkeypatch.setattr(sending, "PAUSE_MAX_S", 0.002)


async def test_L11_each_is_told_once_in_order_and_says_no_more_than_it_should(
    database: Database, tmp_path: Path
) -> None:
    box = Mailbox()
    out = Sending(database, {"webhook": box}, least="throttled", gateway="spiffe://field.example/gateway/main")
    running = asyncio.create_task(out.run())
    await give(database, tmp_path, out, kinds=("warned", "throttled", "quarantined", "copied", "quarantined"))
    await until(lambda: len(box.taken) == 3)
    running.cancel()
    assert [one["type"] for one in box.taken] == ["device.throttled", "device.quarantined", "device.copied"]
    assert box.taken[1]["data"] == {
        "gateway": "spiffe://field.example/gateway/main", "device": "spiffe://field.example/edge/lap-1",
        "enrolment": 1, "reasons": "rate 50",
        "message": "is in quarantine and refused everything, for it does what it does not usually do",
    }
    assert "t0ken" not in json.dumps(box.taken)
    assert len(set(box.tries)) == len(box.tries) == 3


async def test_of_the_states_a_person_is_told_the_latest(database: Database, tmp_path: Path) -> None:
    await give(database, tmp_path, kinds=("copied", "warned", "throttled"))
    alerts = Alerts(database, AuditLog(tmp_path / "b.jsonl"))
    await alerts.load()
    assert alerts.of(1) == f"{WORDS['copied']}; {WORDS['throttled']}"
    await alerts.withdraw(1, ("throttled",))
    assert alerts.of(1) == f"{WORDS['copied']}; {WORDS['warned']}"
    await alerts.withdraw(1, ("copied", "warned"))
    assert alerts.of(1) == alerts.of(2) == ""


async def test_a_dead_receiver_holds_up_nobody_and_gets_it_later_under_the_same_id(
    database: Database, tmp_path: Path
) -> None:
    dead, alive = Mailbox(), Mailbox()
    dead.takes = False
    out = Sending(database, {"webhook": dead, "syslog": alive})
    running = asyncio.create_task(out.run())
    await give(database, tmp_path, out, kinds=("throttled", "quarantined"))
    await until(lambda: len(alive.taken) == 2 and len(dead.tries) > 3)
    assert len(set(dead.tries)) == 1, "in order, one at a time"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    dead.takes = True  # another process
    again = Sending(database, {"webhook": dead, "syslog": alive})
    running = asyncio.create_task(again.run())
    await until(lambda: len(dead.taken) == 2)
    running.cancel()
    assert [one["type"] for one in dead.taken] == ["device.throttled", "device.quarantined"]
    assert len(set(dead.tries)) == 2 and len(alive.taken) == 2


async def test_the_queue_is_bounded_and_what_nobody_takes_ends(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "QUEUE_MAX", 5)
    clock, box = Clock(1_000.0), Mailbox()
    box.takes = False
    out = Sending(database, {"webhook": box}, clock=clock)
    for number in range(20):
        alert = Alert(f"msg_{number}", "copied", "edge/x", 1, "may have been copied", 1_000, {})
        await database.run(lambda connection, alert=alert: out.put(connection, alert))

    def left() -> list[str]:
        rows = database.run_sync(
            lambda connection: connection.execute("SELECT id FROM alerts_to_send ORDER BY number").fetchall()
        )
        return [str(row[0]) for row in rows]

    assert left() == [f"msg_{number}" for number in range(15, 20)]
    running = asyncio.create_task(out.run())
    await until(lambda: len(box.tries) > 3)
    assert len(left()) == 5
    clock.now += 4 * 86_400
    out.wake()
    await until(lambda: not left())
    running.cancel()


# --- webhook ---------------------------------------------------------------------------------------------------------


def test_the_signature_is_that_of_standard_webhooks(secret: Secret) -> None:
    headers = signed(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_example_of_the_manual_believes_ours_and_nobody_else(secret: Secret) -> None:
    example = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "ANOMALY.md").read_text(), re.DOTALL)
    assert example is not None
    names: dict[str, Any] = {}
    exec(example[1], names)
    verify, body = names["verify"], b'{"type":"device.quarantined"}'
    headers = signed(secret, "msg_1", 1_000, body)
    assert verify(SECRET, headers, body, now=1_010)
    assert not verify(SECRET, headers, body + b" ", now=1_010)
    assert not verify(SECRET, headers, body, now=2_000), "an old one, replayed"
    assert not verify(SECRET, {**headers, "webhook-id": "msg_2"}, body, now=1_010)
    assert not verify("whsec_" + "A" * 32, headers, body, now=1_010)


class Hook:
    """A receiver by HTTP, on loopback."""

    def __init__(self) -> None:
        self.answers: list[web.Response] = []
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.read()))
        return self.answers.pop(0) if self.answers else web.Response()


@pytest.fixture
async def hook() -> AsyncIterator[Hook]:
    hook, app = Hook(), web.Application()
    app.router.add_route("*", "/{any:.*}", hook.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    hook.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/hook"  # type: ignore[attr-defined]
    yield hook
    await runner.cleanup()


async def test_a_webhook_is_tried_again_until_it_is_taken(
    database: Database, tmp_path: Path, hook: Hook, secret: Secret
) -> None:
    hook.answers = [web.Response(status=503), web.Response(status=302, headers={"Location": "/elsewhere"})]
    clock = Clock(5_000.0)
    out = Sending(database, {"webhook": Webhook(hook.url, secret)}, clock=clock)
    running = asyncio.create_task(out.run())
    await give(database, tmp_path, out)
    await until(lambda: len(hook.got) == 3)
    await asyncio.sleep(0.05)
    running.cancel()
    assert len(hook.got) == 3, "no redirect was followed, and what is taken is not sent again"
    assert len({headers["webhook-id"] for headers, _ in hook.got}) == 1
    for headers, body in hook.got:
        expected = signed(secret, headers["webhook-id"], 5_000, body)
        assert {name: headers[name] for name in expected} == expected
        assert headers["Content-Type"] == "application/json" and "Cookie" not in headers


async def test_a_receiver_that_is_not_there_is_not_taken_for_one_that_is(secret: Secret) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = Webhook(f"http://127.0.0.1:{taken.getsockname()[1]}/", secret)
        with pytest.raises(NotTaken):
            await nobody.send("msg_1", b"{}", 0)
        with pytest.raises(NotTaken):
            await Syslog(f"tcp:127.0.0.1:{taken.getsockname()[1]}").send("msg_1", BODY, 0)
    with pytest.raises(NotTaken):
        await Syslog("unix:/nowhere/log").send("msg_1", BODY, 0)


# --- syslog ----------------------------------------------------------------------------------------------------------

DATA = {"gateway": "g", "device": "spiffe://field.example/edge/lap-1", "enrolment": 1, "message": "is slowed down",
        "reasons": "rate 50, repetition 40"}
BODY = json.dumps({"type": "device.quarantined", "timestamp": "2026-11-22T14:00:00Z", "data": DATA}).encode()
LINE = re.compile(
    rb'<(\d{1,3})>1 (\S+) (\S+) (\S+) (\S+) (\S{1,32}) '
    rb'(\[causeway@32473(?: [a-z]+="(?:[^"\\\]]|\\["\\\]])*")*\]) ([\x20-\x7e]*)'
)


def test_a_message_is_one_of_rfc_5424() -> None:
    found = LINE.fullmatch(message("msg_1", BODY, "gw-1", 7))
    assert found is not None
    assert found.groups()[:6] == (b"82", b"2026-11-22T14:00:00Z", b"gw-1", b"causeway-gateway", b"7",
                                  b"device.quarantined")
    assert b'reasons="rate 50, repetition 40"' in found[7] and b'id="msg_1"' in found[7]
    assert message("m", BODY.replace(b"quarantined", b"throttled"), "", 7).startswith(b"<84>1 2026-11-22T14:00:00Z - ")


@settings(max_examples=60)
@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=20))
def test_no_name_breaks_out_of_its_place(device: str, reasons: str, host: str) -> None:
    data = {**DATA, "device": device, "reasons": reasons}
    body = json.dumps({"type": "device.copied", "timestamp": "2026-11-22T14:00:00Z", "data": data}).encode()
    found = LINE.fullmatch(message("msg_1", body, host, 7))
    assert found is not None
    values = re.findall(rb'([a-z]+)="((?:[^"\\\]]|\\["\\\]])*)"', found[7])
    assert [name for name, _ in values] == [b"id", b"gateway", b"device", b"enrolment", b"reasons"]


async def test_it_goes_to_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(path)
        log.settimeout(10)
        await Syslog(f"unix:{path}").send("msg_1", BODY, 0)
        assert LINE.fullmatch(await asyncio.to_thread(log.recv, 4_096))


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
async def test_it_goes_by_tcp_with_its_length_before_it(scheme: str, tmp_path: Path) -> None:
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.set_result(await reader.read())
        writer.close()

    server_side, ca = (None, None) if scheme == "tcp" else certificate(tmp_path)
    server = await asyncio.start_server(take, "127.0.0.1", 0, ssl=server_side)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await Syslog(f"{scheme}:{'localhost' if ca else '127.0.0.1'}:{port}", ca_file=ca).send("msg_1", BODY, 0)
        data = await got
        if ca is not None:
            with pytest.raises(NotTaken):  # whose certificate nobody vouches for
                await Syslog(f"tls:localhost:{port}").send("msg_2", BODY, 0)
    length, _, line = data.partition(b" ")
    assert int(length) == len(line) and LINE.fullmatch(line)


RSYSLOG = """
module(load="imuxsock" SysSock.Use="off")
module(load="imtcp")
input(type="imuxsock" Socket="{0}/log" UseSpecialParser="off")
input(type="imtcp" port="0" address="127.0.0.1" listenPortFileName="{0}/port")
template(name="read" type="string" string="%syslogseverity-text% %app-name% %msgid% %structured-data%%msg%\\n")
action(type="omfile" file="{0}/out" template="read" asyncWriting="off")
"""


@pytest.fixture
async def rsyslog(tmp_path: Path) -> AsyncIterator[Path]:
    """The folder of a real rsyslogd: its socket `log`, its TCP `port`, and `out` with what it has read."""
    program = shutil.which("rsyslogd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("rsyslog is not installed")
    folder = Path(tempfile.mkdtemp(prefix="rsyslog-"))  # a socket's path has room for 107 bytes
    (folder / "conf").write_text(RSYSLOG.format(folder))
    process = await asyncio.create_subprocess_exec(
        program, "-n", "-f", folder / "conf", "-i", folder / "pid", stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        port = folder / "port"
        await until(lambda: (folder / "log").exists() and port.exists() and port.read_text().strip().isdigit())
        yield folder
    finally:
        process.terminate()
        await process.wait()
        shutil.rmtree(folder)


@pytest.mark.parametrize("way", ["unix", "tcp"])
async def test_a_real_rsyslog_reads_every_part_of_it(way: str, rsyslog: Path) -> None:
    place = f"unix:{rsyslog}/log" if way == "unix" else f"tcp:127.0.0.1:{(rsyslog / 'port').read_text().strip()}"
    await Syslog(place).send("msg_1", BODY, 0)
    out = rsyslog / "out"
    await until(lambda: out.exists() and out.read_text().endswith("\n"))
    assert out.read_text() == (
        'crit causeway-gateway device.quarantined [causeway@32473 id="msg_1" gateway="g" '
        'device="spiffe://field.example/edge/lap-1" enrolment="1" reasons="rate 50, repetition 40"]'
        "spiffe://field.example/edge/lap-1: is slowed down\n"
    )


def certificate(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's context for localhost, and the file by which it is known."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "log")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now.replace(
        year=now.year + 1, day=1
    )).add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), True
    ).sign(key, hashes.SHA256())
    chain, secret_key = directory / "log.pem", directory / "log.key"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret_key.write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, secret_key)
    return context, chain


# --- what the file says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [
    "http://ops.example/hook", "ftp://ops.example", "https://", "https://user:pw@ops.example/", "ops.example",
    "https://ops.example/a b", "http://169.254.169.254/", "https://ops.example/#x\n",
])
def test_a_webhook_goes_by_https_or_stays_here(url: str) -> None:
    with pytest.raises(ConfigError, match=r"alerts\.webhook"):
        checked_alerts(AlertSettings(webhook=url, webhook_secret_file="s"))


@pytest.mark.parametrize("place", ["udp:x:514", "tcp:log.example:514", "unix:dev/log", "tls:nowhere", "/dev/log"])
def test_a_syslog_is_here_or_by_tls(place: str) -> None:
    with pytest.raises(ConfigError, match=r"alerts\.syslog"):
        checked_alerts(AlertSettings(syslog=place))


def test_places_that_are_good() -> None:
    for url in ("https://ops.example/hook?x=1", "http://127.0.0.1:9000/", "http://[::1]:9000/", "http://localhost/h"):
        assert checked_alerts(AlertSettings(webhook=url, webhook_secret_file="s")).webhook == url
    for place in ("unix:/dev/log", "tls:log.example:6514", "tcp:127.0.0.1:514"):
        assert checked_alerts(AlertSettings(syslog=place)).syslog is not None


@pytest.mark.parametrize("content", [b"", b"whsec_", b"whsec_AAAA", b"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b"whsec_\xff"])
def test_a_secret_that_is_none_is_an_error_that_does_not_show_it(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(ConfigError, match="webhook_secret_file") as told:
        receivers_of(AlertSettings(webhook="https://ops.example/", webhook_secret_file="s"), tmp_path)
    assert "AAAA" not in str(told.value) and "MfKQ" not in str(told.value)
    with pytest.raises(ConfigError, match="webhook_secret_file"):
        receivers_of(AlertSettings(webhook="https://ops.example/", webhook_secret_file="no such"), tmp_path)


def test_nobody_is_told_unless_somebody_is_named(tmp_path: Path) -> None:
    assert receivers_of(AlertSettings(), tmp_path) == {}
