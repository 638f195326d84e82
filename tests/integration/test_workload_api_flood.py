"""What any program on the host may do to the Workload API's socket, and what it must not do to the gateway by that."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from grpclib.protocol import H2Protocol
from h2.config import H2Configuration
from h2.connection import H2Connection

from relay.gateway.errors import ConfigError
from relay.gateway.identity.workloads import attest, server
from relay.gateway.identity.workloads.attest import Digests
from relay.gateway.identity.workloads.entries import Seen, Workload
from relay.gateway.identity.workloads.server import WorkloadServer
from relay.gateway.identity.workloads.service import HASHING, WorkloadApi
from tests.support.workload_caller import connected
from tests.support.workload_lab import ME, PYTHON, workload, workload_lab

pytestmark = pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="only Linux tells who calls")
_OF: Any = attest.Caller.of.__func__  # type: ignore[attr-defined]
LIMIT_S = 60  # for hanging alone
_CALL = [
    (":method", "POST"), (":scheme", "http"), (":path", "/x"), (":authority", "x"), ("te", "trailers"),
    ("content-type", "application/grpc"),
]


@contextlib.asynccontextmanager
async def serving(path: Path, **given: Any) -> AsyncIterator[WorkloadServer]:
    serving = WorkloadServer(path, {}, **given)
    await serving.start()
    try:
        yield serving
    finally:
        await serving.close()


def begun() -> H2Connection:
    connection = H2Connection(H2Configuration(client_side=True))
    connection.initiate_connection()
    return connection


def calls(connection: H2Connection, count: int) -> bytes:
    """Each begun and cancelled at once, so that no limit of streams ever holds them up."""
    data = connection.data_to_send()
    for _ in range(count):
        number = connection.get_next_available_stream_id()
        connection.send_headers(number, _CALL)
        connection.reset_stream(number)
        data += connection.data_to_send()
    return data


async def test_while_calls_flood_in_the_gateway_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one socket read may bring would keep the event loop busy for a second and more."""
    longest = 0
    original = H2Protocol.data_received

    def received(self: Any, data: bytes) -> None:
        nonlocal longest
        longest = max(longest, len(data))
        original(self, data)

    monkeypatch.setattr(H2Protocol, "data_received", received)
    async with serving(tmp_path / "w.sock"):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "w.sock")
        connection = begun()
        writer.write(calls(connection, 200))
        connection.ping(b"the last")
        writer.write(connection.data_to_send())
        async with asyncio.timeout(LIMIT_S):
            while not any(type(event).__name__ == "PingAckReceived" for event in connection.receive_data(
                await reader.read(65_536)
            )):
                pass
        writer.close()
    assert 0 < longest <= 2_048, "at most some seventy calls between two turns of the loop"


async def test_a_new_connection_is_no_new_budget(tmp_path: Path) -> None:
    now = 1_000.0
    async with serving(tmp_path / "w.sock", clock=lambda: now):
        sent, ended = 0, 0
        async with asyncio.timeout(LIMIT_S):
            while not ended:
                assert sent <= server.BYTES_BURST, "a user has no more than this"
                reader, writer = await asyncio.open_unix_connection(tmp_path / "w.sock")
                connection = begun()
                data = calls(connection, 300)
                connection.ping(b"the last")
                data += connection.data_to_send()
                sent += len(data)
                with contextlib.suppress(ConnectionError):
                    writer.write(data)
                    while True:
                        came = await reader.read(65_536)
                        if not came:
                            ended += 1
                            break
                        if any(type(event).__name__ == "PingAckReceived" for event in connection.receive_data(came)):
                            break
                    writer.transport.abort()
                    continue
                ended += 1
        now += 60.0
        reader, writer = await asyncio.open_unix_connection(tmp_path / "w.sock")
        writer.write(begun().data_to_send())
        async with asyncio.timeout(LIMIT_S):
            assert await reader.read(1), "with time it comes back"
        writer.transport.abort()


async def test_who_has_an_entry_is_not_kept_out_by_those_who_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One person may have thousands of user numbers (subuid(5)), each of which would have a share of its own."""
    uids = iter(range(100_000, 100_000 + 10 * server.CONNECTIONS))
    original = attest.Caller.of

    def of(connection: Any) -> Any:
        caller = original(connection)
        caller.uid = next(uids) if strangers else os.getuid()
        return caller

    monkeypatch.setattr(attest.Caller, "of", of)
    strangers = True
    async with serving(tmp_path / "w.sock", users={os.getuid()}) as door, contextlib.AsyncExitStack() as stack:
        held = []
        for _ in range(server.CONNECTIONS):
            try:
                reader, writer = await asyncio.open_unix_connection(tmp_path / "w.sock")
                held.append((reader, writer))
                stack.callback(writer.transport.abort)
                writer.write(begun().data_to_send())
                async with asyncio.timeout(LIMIT_S):
                    if not await reader.read(1):
                        break
            except ConnectionError:
                break
        assert len(door._connections) == server.CONNECTIONS_OF_USER
        strangers = False
        reader, writer = await asyncio.open_unix_connection(tmp_path / "w.sock")
        stack.callback(writer.transport.abort)
        writer.write(begun().data_to_send())
        async with asyncio.timeout(LIMIT_S):
            assert await reader.read(1)


async def test_who_asks_and_never_reads_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library answers pings at once and keeps what is not read: 3 GB in a day, of each connection."""
    monkeypatch.setattr(server, "BYTES_BURST", 1 << 30)
    async with serving(tmp_path / "w.sock"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as mine:
            mine.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(mine, str(tmp_path / "w.sock"))
            connection = begun()
            await loop.sock_sendall(mine, connection.data_to_send())
            connection.ping(b"unheard!")
            pings = connection.data_to_send() * 4_096
            with pytest.raises(ConnectionError):
                for _ in range(4 * server.BYTES_UNREAD // len(pings)):
                    async with asyncio.timeout(LIMIT_S):
                        await loop.sock_sendall(mine, pings)


async def test_one_users_file_keeps_nobody_elses_waiting(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a file system that is the user's own (FUSE) may take for ever to be read. Hanging up and calling again
    must not take one thread after the other, least of all those that the audit is written by.
    """
    entries = [workload("slow", path=str(PYTHON), sha256="0" * 64), Workload(id="/workload/other", uid=ME.uid + 1)]
    reading, gone_on, threads = asyncio.Event(), asyncio.Event(), [0, 0]
    loop = asyncio.get_running_loop()

    def stuck(_: Digests, descriptor: int) -> str:
        threads[0] += 1
        threads[1] = max(threads)
        loop.call_soon_threadsafe(reading.set)
        asyncio.run_coroutine_threadsafe(gone_on.wait(), loop).result(LIMIT_S)
        threads[0] -= 1
        return "0" * 64

    asked, original = 0, WorkloadApi._attested

    async def attested(self: WorkloadApi, caller: attest.Caller) -> Any:
        nonlocal asked
        asked += 1
        return await original(self, caller)

    monkeypatch.setattr(attest.Digests, "of", stuck)
    monkeypatch.setattr(WorkloadApi, "_attested", attested)
    async with workload_lab(made, tmp_path, entries) as lab, asyncio.timeout(LIMIT_S):
        rounds = HASHING + 1
        for number in range(1, rounds + 1):
            async with connected(lab.socket) as caller:
                asking = asyncio.create_task(caller.first("FetchX509Bundles"))
                await reading.wait()
                while asked < number:  # noqa: ASYNC110 - the call is on its way
                    await asyncio.sleep(0)
                asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            while lab.workloads._server._connections:  # noqa: ASYNC110 - its end is on its way
                await asyncio.sleep(0)
        with monkeypatch.context() as patched:
            patched.setattr(attest.Caller, "attest", lambda me, _, **__: Seen(me.pid, ME.uid + 1, None, None))
            patched.setattr(attest.Caller, "of", classmethod(_of_another_user))
            async with connected(lab.socket) as other:
                await other.first("FetchX509Bundles")
        assert threads[1] == 1
        gone_on.set()


def _of_another_user(cls: type[attest.Caller], connection: attest.PeerSocket) -> attest.Caller:
    caller: attest.Caller = _OF(cls, connection)
    caller.uid = ME.uid + 1
    return caller


async def test_a_path_that_is_no_text_is_refused_on_record(made: Path, tmp_path: Path) -> None:
    (there := Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))).mkdir()
    program = there / "python"
    program.write_bytes(PYTHON.read_bytes())
    program.chmod(0o755)
    with program.open("rb") as file:
        assert attest._path_of(file.fileno()) is None
    async with workload_lab(made, tmp_path, [workload("exact", path="/bin/other")]) as lab:
        process = await asyncio.create_subprocess_exec(
            program, "-c", "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
            "s.sendall(sys.stdin.buffer.read()); print(s.recv(1)); sys.stdout.flush(); s.settimeout(60)\n"
            "while s.recv(65536): pass", str(lab.socket),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
        )
        connection = begun()
        number = connection.get_next_available_stream_id()
        connection.send_headers(number, [
            *_CALL[:2], (":path", "/SpiffeWorkloadAPI/FetchX509Bundles"), *_CALL[3:], ("workload.spiffe.io", "true"),
        ])
        connection.send_data(number, bytes(5), end_stream=True)
        assert process.stdin is not None
        process.stdin.write(connection.data_to_send())
        process.stdin.close()
        try:
            async with asyncio.timeout(LIMIT_S):
                while not lab.events("workload.refused"):  # noqa: ASYNC110 - what is waited for is in a file
                    await asyncio.sleep(0)
        finally:
            process.kill()
            await process.wait()
        (line,) = lab.events("workload.refused")
        assert (line["reason"], line["path"], line["pid"]) == ("no entry fits", "", process.pid)


async def test_a_folder_of_somebody_elses_is_no_place_for_the_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    if os.getuid() == 0:
        os.chown(tmp_path, 65_534, -1)
    with pytest.raises(ConfigError, match="others may write"):
        await WorkloadServer(tmp_path / "w.sock", {}).start()


async def test_who_has_no_entry_is_refused_and_costs_no_look(made: Path, tmp_path: Path) -> None:
    async with workload_lab(made, tmp_path, [Workload(id="/workload/other", uid=ME.uid + 1)]) as lab:
        async with connected(lab.socket) as caller:
            with pytest.raises(GRPCError) as error:
                await caller.first("FetchX509SVID")
            assert error.value.status is Status.PERMISSION_DENIED
        (line,) = lab.events("workload.refused")
        assert (line["reason"], line["uid"]) == ("no entry fits", ME.uid)
