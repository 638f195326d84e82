"""Our Workload API at its edges: bad calls, many calls, changes while a stream is open, and the socket itself."""

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from h2.config import H2Configuration
from h2.connection import H2Connection
from spiffe._proto import workload_pb2

from relay.gateway.errors import AuditUnavailable, ConfigError
from relay.gateway.identity.jose import signed
from relay.gateway.identity.workloads import server as server_module
from relay.gateway.identity.workloads.documents import JWT_LIFETIME_S
from relay.gateway.identity.workloads.messages import MESSAGES
from relay.gateway.identity.workloads.server import BYTES_BURST, CONNECTIONS_OF_USER, WorkloadServer
from relay.gateway.identity.workloads.service import AUDIENCES_MAX, CALLS
from relay.gateway.identity.workloads.service import STREAMS as STREAMS_OF_USER
from tests.support.ca import Ca
from tests.support.gateway_lab import DOMAIN
from tests.support.workload_caller import HEADER, OF, STREAMS, Caller, connected
from tests.support.workload_lab import ME, PYTHON, Lab, spiffe_id, workload, workload_lab
from transport.identity.svid import SpiffeId, TrustBundle
from transport.primitives import SigningKey

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who calls")
LIMIT_S = 60  # for hanging alone


@pytest.fixture
async def lab(made: Path, tmp_path: Path) -> AsyncIterator[Lab]:
    async with workload_lab(made, tmp_path) as lab:
        yield lab


async def refused(caller: Caller, name: str, **given: Any) -> Status:
    with pytest.raises(GRPCError) as error:
        await caller.first(name, **given)
    return error.value.status


def test_the_messages_are_those_of_the_specification() -> None:
    """As the stock client has them: names, numbers, types, and who holds whom."""

    def fields(descriptor: Any) -> list[Any]:
        return [
            (one.name, one.number, one.type, one.is_repeated, one.message_type and one.message_type.full_name)
            for one in descriptor.fields
        ]

    theirs = workload_pb2.DESCRIPTOR.message_types_by_name
    assert set(theirs) == set(MESSAGES)
    for name, message in MESSAGES.items():
        assert fields(message.DESCRIPTOR) == fields(theirs[name]), name
    (service,) = workload_pb2.DESCRIPTOR.services_by_name.values()
    assert service.full_name == "SpiffeWorkloadAPI"
    assert [one.name for one in service.methods if one.server_streaming] == list(STREAMS)
    assert {one.name for one in service.methods} == set(OF)


@pytest.mark.parametrize("name", OF)
@pytest.mark.parametrize("metadata", [{}, {"workload.spiffe.io": "false"}, {"workload.spiffe.io": "True"}])
async def test_without_the_security_header_every_call_is_an_invalid_argument(
    lab: Lab, name: str, metadata: dict[str, str]
) -> None:
    async with connected(lab.socket) as caller:
        assert await refused(caller, name, metadata=metadata) is Status.INVALID_ARGUMENT
    assert lab.enrolment.registrations() == []


@pytest.mark.parametrize(
    "audience", [[], [""], ["a", ""], ["a"] * (AUDIENCES_MAX + 1), ["a" * 1_025]], ids=range(5)
)
async def test_a_jwt_svid_is_for_a_named_audience(lab: Lab, audience: list[str]) -> None:
    async with connected(lab.socket) as caller:
        assert await refused(caller, "FetchJWTSVID", audience=audience) is Status.INVALID_ARGUMENT


async def test_of_a_jwt_svid_all_claims_are_told(lab: Lab) -> None:
    async with connected(lab.socket) as caller:
        response = await caller.first("FetchJWTSVID", audience=["reports", "archive"])
        (svid,) = response.svids
        told = await caller.first("ValidateJWTSVID", audience="archive", svid=svid.svid)
        assert told.spiffe_id == svid.spiffe_id == spiffe_id("me")
        now = int(lab.clock())
        assert dict(told.claims) | {"aud": list(told.claims["aud"])} == {
            "sub": spiffe_id("me"), "aud": ["reports", "archive"], "iat": now, "exp": now + JWT_LIFETIME_S
        }
        header = json.loads(_decoded(svid.svid.split(".")[0]))
        assert header.keys() == {"alg", "kid", "typ"}  # JWT-SVID section 2 allows no others
        assert (header["alg"], header["typ"]) == ("ES256", "JWT")


async def test_what_is_no_jwt_svid_of_ours_is_refused_by_its_rule(lab: Lab) -> None:
    async def rule(token: str, audience: str = "a") -> str:
        with pytest.raises(GRPCError) as error:
            await caller.first("ValidateJWTSVID", audience=audience, svid=token)
        assert error.value.status is Status.INVALID_ARGUMENT
        return (error.value.message or "").rpartition(": ")[2]

    async with connected(lab.socket) as caller:
        good = (await caller.first("FetchJWTSVID", audience=["a"])).svids[0].svid
        now = int(lab.clock())
        head, body, signature = good.split(".")
        claims = {"sub": spiffe_id("me"), "aud": ["a"], "iat": now, "exp": now + 300}
        kid = json.loads(_decoded(head))["kid"]

        def forged(**header: Any) -> str:
            return signed(SigningKey.generate(), {"typ": "JWT", "kid": kid, **header}, claims)

        assert await rule(forged()) == "signature"
        assert await rule(forged(kid="other")) == "key"
        assert await rule(f"{head}.{body}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}") == "signature"
        none = _encoded(json.dumps({"alg": "none", "typ": "JWT", "kid": kid}).encode())
        assert await rule(f"{none}.{body}.") == "form"
        assert await rule(f"{none}.{body}.{signature}") == "algorithm"
        assert await rule("x" * 4_000) == "form"
        assert await rule(good, "b") == "audience"
        assert await rule(await lab.keys.sign({**claims, "sub": "spiffe://Other/x"}, "JWT")) == "subject"
        assert await rule(await lab.keys.sign({**claims, "sub": spiffe_id("you")}, "JWT")) == "registration"
        assert await rule(await lab.keys.sign({**claims, "exp": now + 301}, "JWT")) == "lifetime"
        assert await rule(await lab.keys.sign({**claims, "iat": now + 61}, "JWT")) == "not yet valid"
        assert await rule(await lab.keys.sign(claims, "at+jwt")) == "type"
        lab.clock.now += JWT_LIFETIME_S + 61
        assert await rule(good) == "expired"


async def test_a_jwt_svid_ends_with_its_holder_and_stays_ended_when_that_comes_back(lab: Lab) -> None:
    async with connected(lab.socket) as caller:
        old = (await caller.first("FetchJWTSVID", audience=["a"])).svids[0].svid
        lab.clock.now += 1
        await lab.revocation.revoke("workload/me", "test")
        for name in OF:
            given = {"audience": ["a"]} if name == "FetchJWTSVID" else {}
            if name == "ValidateJWTSVID":
                given = {"audience": "a", "svid": old}
            assert await refused(caller, name, **given) is Status.PERMISSION_DENIED
        lab.clock.now += 1
        await lab.revocation.reinstate("workload/me")
        assert await refused(caller, "ValidateJWTSVID", audience="a", svid=old) is Status.INVALID_ARGUMENT
        new = (await caller.first("FetchJWTSVID", audience=["a"])).svids[0].svid
        await caller.first("ValidateJWTSVID", audience="a", svid=new)


async def test_a_streams_first_message_comes_at_once_and_the_next_at_a_change(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, looks = lab.workloads._api._attested, []

    async def counted(caller: Any) -> Any:
        looks.append(caller)
        return await real(caller)

    monkeypatch.setattr(lab.workloads._api, "_attested", counted)
    async with connected(lab.socket) as caller, caller.call("FetchX509SVID") as stream:
        first = await stream.recv_message()
        for seconds in (0, 1_649):  # nothing has changed: it is looked at, and nothing is sent
            before = len(looks)
            await lab.later(seconds)
            async with asyncio.timeout(LIMIT_S):
                while len(looks) == before:  # noqa: ASYNC110
                    await asyncio.sleep(0)
        await lab.later(2)  # half of 55 minutes has passed
        second = await stream.recv_message()
        assert first.svids[0].x509_svid != second.svids[0].x509_svid
        assert first.svids[0].x509_svid_key != second.svids[0].x509_svid_key
        assert len(lab.events("attested.issued")) == 2
        assert len(lab.events("workload.served")) == 2


async def test_another_bundle_is_pushed_to_whoever_has_the_last(lab: Lab) -> None:
    async with (
        connected(lab.socket) as caller, caller.call("FetchX509SVID") as svids,
        caller.call("FetchX509Bundles") as bundles,
    ):
        before = (await svids.recv_message()).svids[0]
        held = await bundles.recv_message()
        assert dict(held.bundles) == {f"spiffe://{DOMAIN}": before.bundle} and before.bundle == lab.authority.root
        lab.authority.bundle = TrustBundle(DOMAIN, (*lab.authority.bundle.roots, Ca().root_der), 2)
        lab.workloads.look_again()
        after = (await svids.recv_message()).svids[0]
        assert after.x509_svid == before.x509_svid
        assert after.bundle == b"".join(lab.authority.bundle.roots)
        assert dict((await bundles.recv_message()).bundles) == {f"spiffe://{DOMAIN}": after.bundle}


async def test_streams_of_one_id_share_what_is_issued(lab: Lab) -> None:
    async with connected(lab.socket) as caller:
        told = await asyncio.gather(*(caller.first("FetchX509SVID") for _ in range(10)))
        assert len({one.svids[0].x509_svid for one in told}) == 1
        assert len(lab.events("attested.issued")) == 1


async def test_new_keys_are_pushed_to_who_holds_the_jwt_bundle(lab: Lab) -> None:
    async with connected(lab.socket) as caller, caller.call("FetchJWTBundles") as stream:
        def kids(message: Any) -> set[str]:
            ((domain, bundle),) = message.bundles.items()
            assert domain == f"spiffe://{DOMAIN}"
            entries = json.loads(bundle)["keys"]
            assert {one["use"] for one in entries} == {"jwt-svid"}
            assert all("d" not in one for one in entries)
            return {one["kid"] for one in entries}

        before = kids(await stream.recv_message())
        await lab.keys.rotate(compromised=True)
        after = kids(await stream.recv_message())
        assert before.isdisjoint(after)


async def test_streams_end_with_the_registration(lab: Lab) -> None:
    async with connected(lab.socket) as caller, contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(caller.call(name)) for name in STREAMS]
        for stream in streams:
            await stream.recv_message()
        await lab.revocation.revoke("workload/me", "test")
        for stream in streams:
            with pytest.raises(GRPCError) as ended:
                await stream.recv_message()
                await stream.recv_trailing_metadata()
            assert ended.value.status is Status.PERMISSION_DENIED
    assert [one["reason"] for one in lab.events("attested.refused")] == ["registration was revoked"] * 3


async def test_before_each_later_message_the_caller_is_attested_anew(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    from relay.gateway.identity.workloads.attest import Caller as Attested
    from relay.gateway.identity.workloads.attest import NotAttested

    async with connected(lab.socket) as caller, caller.call("FetchX509SVID") as stream:
        await stream.recv_message()

        def another(*_: Any, **__: Any) -> None:
            raise NotAttested("caller runs another executable than when it connected")

        monkeypatch.setattr(Attested, "attest", another)
        await lab.later(2_000)
        with pytest.raises(GRPCError) as ended:
            await stream.recv_message()
            await stream.recv_trailing_metadata()
        assert ended.value.status is Status.PERMISSION_DENIED
    (record,) = lab.events("workload.refused")
    assert (record["reason"], record["pid"]) == ("caller runs another executable than when it connected", os.getpid())


async def test_who_asks_for_anothers_jwt_svid_is_on_record(lab: Lab) -> None:
    async with connected(lab.socket) as caller:
        given = {"audience": ["a"], "spiffe_id": spiffe_id("other")}
        assert await refused(caller, "FetchJWTSVID", **given) is Status.PERMISSION_DENIED
    (record,) = lab.events("workload.refused")
    assert (record["reason"], record["pid"]) == ("another ID asked for", os.getpid())


async def test_what_a_workload_may_have_is_no_devices(lab: Lab) -> None:
    """An ID that somebody else holds is not given out, whatever the configuration says."""
    await lab.enrolment.attested(SpiffeId(DOMAIN, "/workload/me"), "spire")
    async with connected(lab.socket) as caller:
        assert await refused(caller, "FetchX509SVID") is Status.PERMISSION_DENIED
    (record,) = lab.events("attested.refused")
    assert record["reason"] == "another source holds this ID"


# --- abuse ----------------------------------------------------------------------------------------------------------


async def test_a_flood_of_refusals_is_counted_and_not_written(made: Path, tmp_path: Path) -> None:
    async with workload_lab(made, tmp_path, [workload("sleep", path="/bin/sleep")]) as lab:
        async with connected(lab.socket) as caller:
            for _ in range(CALLS.burst):
                assert await refused(caller, "FetchX509SVID") is Status.PERMISSION_DENIED
            assert await refused(caller, "FetchX509SVID") is Status.UNAVAILABLE
        assert len(lab.events("workload.refused")) == 10
        await lab.refusals.flush()
        assert lab.events("workload.refused")[-1]["suppressed"] == CALLS.burst - 10


async def test_calls_come_back_with_time(lab: Lab) -> None:
    async with connected(lab.socket) as caller:
        for _ in range(CALLS.burst):
            await caller.first("FetchX509Bundles")
        assert await refused(caller, "FetchX509Bundles") is Status.UNAVAILABLE
        lab.clock.now += 1
        await caller.first("FetchX509Bundles")


async def test_streams_at_once_are_bounded(lab: Lab) -> None:
    limit = STREAMS_OF_USER
    async with connected(lab.socket) as caller, contextlib.AsyncExitStack() as stack:
        for _ in range(limit):
            stream = await stack.enter_async_context(caller.call("FetchX509Bundles"))
            await stream.recv_message()
        assert await refused(caller, "FetchX509Bundles") is Status.UNAVAILABLE
    async with connected(lab.socket) as caller, asyncio.timeout(LIMIT_S):
        while lab.workloads._api._streams:  # noqa: ASYNC110 - the others' ends are on their way
            await asyncio.sleep(0)
        await caller.first("FetchX509Bundles")


async def test_connections_of_a_user_are_bounded(lab: Lab) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(CONNECTIONS_OF_USER):
            caller = await stack.enter_async_context(connected(lab.socket))
            await caller.first("FetchX509Bundles")
        async with connected(lab.socket) as caller:
            with pytest.raises((StreamTerminatedError, ConnectionError, OSError)):
                await caller.first("FetchX509Bundles")
    assert len(lab.events("workload.served")) == CONNECTIONS_OF_USER


def _h2(headers: list[tuple[str, str]]) -> bytes:
    """A call as no gRPC library makes it."""
    connection = H2Connection(H2Configuration(validate_outbound_headers=False, header_encoding="utf-8"))
    connection.initiate_connection()
    connection.send_headers(1, headers, end_stream=True)
    return connection.data_to_send()


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
_UNKNOWN = bytes(3) + b"\xbb" + bytes(5)  # frames of unknown types are to be ignored (RFC 9113 5.5); the library cannot


@pytest.mark.parametrize("sent", [
    b"GET / HTTP/1.1\r\n\r\n", bytes(1_000), _PREFACE + b"\xff" * 200, _PREFACE + _UNKNOWN,
    _h2([("x", "y")]), _h2([(":method", "POST"), (":path", "/x"), ("content-type", "application/grpc")]),
], ids=["http1", "zeros", "frames", "unknown frame", "no method", "no service"])  # fmt: skip
async def test_what_is_no_grpc_ends_its_connection_alone(
    lab: Lab, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        reader, writer = await asyncio.open_unix_connection(lab.socket)
        writer.write(sent)
        writer.write_eof()
        async with asyncio.timeout(LIMIT_S):
            with contextlib.suppress(ConnectionError):
                await reader.read()
        writer.close()
    assert caplog.records == []  # nobody fills the log by that
    async with connected(lab.socket) as caller:
        await caller.first("FetchX509Bundles")


async def test_a_user_may_send_so_many_bytes(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """One message that is announced as 4 GiB would otherwise be kept as it comes."""
    monkeypatch.setattr(server_module, "BYTES_PER_S", 0)
    async with connected(lab.socket) as caller:
        with pytest.raises((StreamTerminatedError, ConnectionError)):
            for _ in range(BYTES_BURST // 3_000):
                await refused(caller, "ValidateJWTSVID", audience="a", svid="x" * 3_000)
    monkeypatch.setattr(server_module, "BYTES_PER_S", 1 << 40)
    async with connected(lab.socket) as caller:
        lab.clock.now += 60
        await caller.first("FetchX509Bundles")


@pytest.mark.parametrize("data", [b"\x01\0\0\0\0", b"\0\0\0\0\x09", b"\0\0\0\0\x02\xff\xff", b""])
async def test_what_is_no_message_is_an_invalid_argument(lab: Lab, data: bytes) -> None:
    async with connected(lab.socket) as caller, caller._channel.request(
        "/SpiffeWorkloadAPI/FetchJWTSVID", _unary(), MESSAGES["JWTSVIDRequest"], MESSAGES["JWTSVIDResponse"],
        metadata=HEADER,
    ) as stream:
        await stream.send_request()
        await stream._stream.send_data(data, end_stream=True)
        with pytest.raises(GRPCError) as error:
            await stream.recv_message()
        assert error.value.status is Status.INVALID_ARGUMENT
        stream._cancel_done = True


async def test_without_an_audit_nothing_is_issued(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: Any, **__: Any) -> None:
        raise AuditUnavailable("the audit log cannot be written")

    monkeypatch.setattr(lab.audit, "append", full)
    async with connected(lab.socket) as caller:
        for name in STREAMS:
            assert await refused(caller, name) is Status.UNAVAILABLE
        assert await refused(caller, "FetchJWTSVID", audience=["a"]) is Status.UNAVAILABLE


async def test_what_goes_wrong_inside_is_told_by_its_class_alone(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(lab.enrolment, "attested", broken)
    async with connected(lab.socket) as caller:
        assert await refused(caller, "FetchX509SVID") is Status.INTERNAL
    assert [one.getMessage() for one in caplog.records] == ["a call of the Workload API failed: RuntimeError"]


# --- the socket -----------------------------------------------------------------------------------------------------


async def test_the_socket_is_everyones_and_goes_with_the_gateway(made: Path, tmp_path: Path) -> None:
    async with workload_lab(made, tmp_path) as lab:
        assert lab.socket.stat().st_mode & 0o777 == 0o666
    assert not lab.socket.exists()


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(made: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(tmp_path / "w.sock"))
    async with workload_lab(made, tmp_path) as lab:
        with pytest.raises(ConfigError, match="in use"):
            await WorkloadServer(lab.socket, {"/a/b": None}).start()  # type: ignore[dict-item]
        async with connected(lab.socket) as caller:
            await caller.first("FetchX509Bundles")


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    return tmp_path


@pytest.mark.parametrize("where", ["file", "none/w.sock", "x" * 108, "open/w.sock"])
async def test_a_socket_that_cannot_be_is_named(there: Path, where: str) -> None:
    path = there / where
    with pytest.raises(ConfigError, match=r"workload_api\.socket"):
        await WorkloadServer(path, {"/a/b": None}).start()  # type: ignore[dict-item]
    assert (there / "file").read_text() == "mine"


async def test_closing_ends_streams_and_gives_everything_back(made: Path, tmp_path: Path) -> None:
    entries = [ME, workload("exact", path=str(PYTHON))]
    async with workload_lab(made, tmp_path, entries) as lab, connected(lab.socket) as caller:
        await caller.first("FetchX509Bundles")
        before = len(os.listdir("/proc/self/fd"))
        async with connected(lab.socket) as other, other.call("FetchX509SVID") as stream:
            assert len((await stream.recv_message()).svids) == 2
        async with asyncio.timeout(LIMIT_S):
            while len(os.listdir("/proc/self/fd")) > before:  # noqa: ASYNC110
                await asyncio.sleep(0)
        async with caller.call("FetchX509SVID") as stream:
            await stream.recv_message()
            await lab.workloads.close()
            with pytest.raises((GRPCError, StreamTerminatedError)):
                await stream.recv_message()
                await stream.recv_trailing_metadata()


def _unary() -> Any:
    from grpclib.const import Cardinality

    return Cardinality.UNARY_UNARY


def _decoded(part: str) -> bytes:
    import base64

    return base64.urlsafe_b64decode(part + "==")


def _encoded(data: bytes) -> str:
    import base64

    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
