"""The SPIFFE Workload API: what each call answers, to whom, and for how long.

A caller is attested at each call, and again before each message that a stream sends later: what it was entitled to when
it called says nothing of what it may have an hour on.

Source: SPIFFE Workload API sections 4 to 6 and 8, SPIFFE Workload Endpoint sections 3, 5 and 6.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from grpclib.server import Stream

from relay.gateway.audit.log import AuditLog, Value
from relay.gateway.audit.refusals import Refusals
from relay.gateway.errors import AuditUnavailable, AuthorityExpired, EnrolmentRefused
from relay.gateway.identity.jose import TOKEN_MAX, TokenRefused
from relay.gateway.identity.workloads.attest import Caller, Digests, NotAttested
from relay.gateway.identity.workloads.documents import Documents, X509Svid
from relay.gateway.identity.workloads.entries import Seen, Workload, matching, wants_file
from relay.gateway.identity.workloads.messages import MESSAGES, SERVICE
from relay.rates import Rate, SourceBuckets
from store.errors import StoreError

HEADER: Final = "workload.spiffe.io"  # Workload Endpoint section 3: whoever was made to call by another lacks it
AUDIENCES_MAX: Final = 16
AUDIENCE_MAX: Final = 1_024  # characters
CALLS: Final = Rate(10.0, 100)  # of one user: what begins
STREAMS: Final = 64  # and what goes on at once
HASHING: Final = 2  # files that are read at once, one of each user
_REQUEST_S: Final = 10.0  # for a request's few bytes to come
_CHECK_S: Final = 60.0  # callers and bundles are looked at again; a host that slept must not wait out a long timer
_log = logging.getLogger(__name__)
T = TypeVar("T")
Answer = Callable[[list[Workload]], Awaitable[tuple[Any, list[str], float]]]  # message, IDs in it, until when


class WorkloadApi:
    """Answers calls; `handlers` is what a gRPC server needs of it."""

    def __init__(
        self, entries: Sequence[Workload], documents: Documents, audit: AuditLog, refusals: Refusals, *,
        caller: Callable[[], Caller | str], clock: Callable[[], float] = time.time,
    ) -> None:
        """`caller` says who is at the other end of the connection that the running call came by, or why nobody is."""
        self._entries, self._documents, self._audit, self._refusals = entries, documents, audit, refusals
        self._caller, self._digests, self._clock = caller, Digests(), clock
        self._calls = SourceBuckets(CALLS, clock())
        self._streams: Counter[int] = Counter()
        # Not the threads that all others share: a file may be slow for ever.
        self._threads = ThreadPoolExecutor(HASHING, "attestation")
        self._turns = {one.uid: asyncio.Lock() for one in entries}
        self._wake = asyncio.Event()

    def handlers(self) -> dict[str, Handler]:
        """By path."""
        streaming, single = Cardinality.UNARY_STREAM, Cardinality.UNARY_UNARY
        return {
            f"/{SERVICE}/{name}": Handler(work, kind, MESSAGES[f"{asked}Request"], MESSAGES[f"{asked}Response"])
            for name, asked, kind, work in (
                ("FetchX509SVID", "X509SVID", streaming, self._fetch_x509_svid),
                ("FetchX509Bundles", "X509Bundles", streaming, self._fetch_x509_bundles),
                ("FetchJWTSVID", "JWTSVID", single, self._fetch_jwt_svid),
                ("FetchJWTBundles", "JWTBundles", streaming, self._fetch_jwt_bundles),
                ("ValidateJWTSVID", "ValidateJWTSVID", single, self._validate_jwt_svid),
            )
        }

    def look_again(self) -> None:
        """To be called when keys, roots or registrations have changed: every stream answers anew, or ends."""
        self._wake.set()
        self._wake = asyncio.Event()

    def close(self) -> None:
        """Once no call is under way."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- calls ------------------------------------------------------------------------------------------------------

    async def _fetch_x509_svid(self, stream: Stream[Any, Any]) -> None:
        async def answer(entries: list[Workload]) -> tuple[Any, list[str], float]:
            held = await self._granted(entries, self._documents.x509)
            message = MESSAGES["X509SVIDResponse"](svids=[self._x509(one) for one in held])
            until = min(self._clock() + _CHECK_S, *(one.renew_at for one in held))
            return message, [str(one.issued.id) for one in held], until

        await self._stream(stream, "x509", answer)

    async def _fetch_x509_bundles(self, stream: Stream[Any, Any]) -> None:
        await self._stream(stream, "x509 bundle", self._bundles("X509BundlesResponse", self._documents.x509_bundle))

    async def _fetch_jwt_bundles(self, stream: Stream[Any, Any]) -> None:
        await self._stream(stream, "jwt bundle", self._bundles("JWTBundlesResponse", self._documents.jwt_bundle))

    async def _fetch_jwt_svid(self, stream: Stream[Any, Any]) -> None:
        async with self._call(stream) as (caller, request):
            audience = list(request.audience)
            if not all(audience) or not 1 <= len(audience) <= AUDIENCES_MAX or max(map(len, audience)) > AUDIENCE_MAX:
                raise GRPCError(Status.INVALID_ARGUMENT, "audience is missing or too long")  # 4.5
            seen, entries = await self._attested(caller)
            if request.spiffe_id:
                entries = [one for one in entries if str(self._documents.identity(one)) == request.spiffe_id]
                if not entries:
                    raise await self._denied("another ID asked for", seen)
            svids = await self._granted(entries, lambda one: self._jwt(one, audience))
            await self._record("jwt", seen, [one.spiffe_id for one in svids])
            await stream.send_message(MESSAGES["JWTSVIDResponse"](svids=svids))

    async def _validate_jwt_svid(self, stream: Stream[Any, Any]) -> None:
        async with self._call(stream) as (caller, request):
            if not request.audience or not request.svid or len(request.svid) > TOKEN_MAX:
                raise GRPCError(Status.INVALID_ARGUMENT, "audience or svid is missing or too long")  # 4.5
            _, entries = await self._attested(caller)
            await self._granted(entries, self._documents.registered)
            try:
                claims = self._documents.validated(request.svid, request.audience)
            except TokenRefused as refused:
                raise GRPCError(Status.INVALID_ARGUMENT, f"the JWT-SVID is not valid: {refused.rule}") from None
            response = MESSAGES["ValidateJWTSVIDResponse"](spiffe_id=claims.sub)
            response.claims.update({
                "sub": claims.sub, "aud": claims.audience(), "exp": claims.exp, "iat": claims.iat
            })
            await stream.send_message(response)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _bundles(self, name: str, bundle: Callable[[], bytes]) -> Answer:
        async def answer(entries: list[Workload]) -> tuple[Any, list[str], float]:
            entitled = await self._granted(entries, self._documents.registered)
            message = MESSAGES[name](bundles={self._documents.trust_domain: bundle()})
            return message, [one.id for one in entitled], self._clock() + _CHECK_S

        return answer

    async def _stream(self, stream: Stream[Any, Any], kind: str, answer: Answer) -> None:
        """Sends what `answer` makes, at once and whenever it becomes another by `look_again` or at the time it says."""
        async with self._call(stream) as (caller, _):
            with self._slot(caller.uid):
                told: Any = None
                while True:
                    wake = self._wake
                    seen, entries = await self._attested(caller)
                    message, ids, until = await answer(entries)
                    if message != told:
                        await self._record(kind, seen, ids)
                        await stream.send_message(message)
                        told = message
                    await self._passed(until, wake)

    async def _passed(self, until: float, wake: asyncio.Event) -> None:
        while (left := until - self._clock()) > 0 and not wake.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, _CHECK_S)):
                    await wake.wait()

    @contextlib.asynccontextmanager
    async def _call(self, stream: Stream[Any, Any]) -> AsyncIterator[tuple[Caller, Any]]:
        """A call's caller and request. What goes wrong inside becomes the status that the client is told."""
        try:
            if stream.metadata is None or stream.metadata.get(HEADER) != "true":
                raise GRPCError(Status.INVALID_ARGUMENT, f"the metadata {HEADER} is missing")
            caller = self._caller()
            if isinstance(caller, str):
                raise await self._denied(caller)
            if not self._calls.of(str(caller.uid), self._clock()).take(self._clock()):
                raise GRPCError(Status.UNAVAILABLE, "too many calls")
            yield caller, await self._request(stream)
        except (AuditUnavailable, AuthorityExpired, StoreError) as error:
            _log.error("the Workload API cannot answer: %s", error)
            raise GRPCError(Status.UNAVAILABLE, "the gateway cannot issue anything now") from None
        except (GRPCError, StreamTerminatedError, ProtocolError):
            raise
        except Exception as error:
            _log.error("a call of the Workload API failed: %s", type(error).__name__)
            raise GRPCError(Status.INTERNAL, "the gateway failed") from None

    async def _request(self, stream: Stream[Any, Any]) -> Any:
        try:
            async with asyncio.timeout(_REQUEST_S):
                request = await stream.recv_message()
        except (NotImplementedError, AssertionError, DecodeError, TimeoutError):  # as the library tells what is none
            request = None
        if request is None:
            raise GRPCError(Status.INVALID_ARGUMENT, "no request")
        return request

    async def _attested(self, caller: Caller) -> tuple[Seen, list[Workload]]:
        """Who calls, and the entries that this process fits now. Raises GRPCError after a record if there are none."""
        if (turn := self._turns.get(caller.uid)) is None:
            raise await self._denied("no entry fits", Seen(caller.pid, caller.uid, None, None))
        path, digest = wants_file(self._entries, caller.uid)
        try:
            seen = await self._look(turn, partial(caller.attest, self._digests, path=path, digest=digest))
        except NotAttested as refused:
            raise await self._denied(refused.reason, Seen(caller.pid, caller.uid, None, None)) from None
        entries = matching(self._entries, seen)
        if not entries:
            raise await self._denied(seen.unreadable or "no entry fits", seen)
        return seen, entries

    async def _look(self, turn: asyncio.Lock, attest: Callable[[], Seen]) -> Seen:
        """One of each user at a time. A call that is cancelled gives its turn back when its thread is done."""
        await turn.acquire()
        looking = asyncio.get_running_loop().run_in_executor(self._threads, attest)

        def done(_: asyncio.Future[Seen]) -> None:
            turn.release()
            looking.cancelled() or looking.exception()  # else nobody may have asked

        looking.add_done_callback(done)
        return await asyncio.shield(looking)

    async def _granted(self, entries: Sequence[Workload], make: Callable[[Workload], Awaitable[T]]) -> list[T]:
        """What is made for each of the IDs that may still have it. Raises GRPCError if that is none of them."""
        made: list[T] = []
        for entry in entries:
            with contextlib.suppress(EnrolmentRefused):  # on record already
                made.append(await make(entry))
        if not made:
            raise GRPCError(Status.PERMISSION_DENIED, "no identity issued")
        return made

    async def _jwt(self, entry: Workload, audience: Sequence[str]) -> Any:
        return MESSAGES["JWTSVID"](
            spiffe_id=str(self._documents.identity(entry)), svid=await self._documents.jwt(entry, audience),
            hint=entry.hint,
        )

    def _x509(self, held: X509Svid) -> Any:
        return MESSAGES["X509SVID"](
            spiffe_id=str(held.issued.id), x509_svid=b"".join(held.issued.chain),
            x509_svid_key=held.key.to_pkcs8().expose(), bundle=self._documents.x509_bundle(), hint=held.entry.hint,
        )

    @contextlib.contextmanager
    def _slot(self, uid: int) -> Iterator[None]:
        if self._streams[uid] >= STREAMS:
            raise GRPCError(Status.UNAVAILABLE, "too many streams")
        self._streams[uid] += 1
        try:
            yield
        finally:
            self._streams[uid] -= 1
            if not self._streams[uid]:
                del self._streams[uid]

    async def _record(self, kind: str, seen: Seen, ids: Sequence[str]) -> None:
        await self._audit.append(
            "workload.served", kind=kind, ids=" ".join(ids), uid=seen.uid, pid=seen.pid, path=seen.path or "",
            sha256=seen.sha256 or "",
        )

    async def _denied(self, reason: str, seen: Seen | None = None) -> GRPCError:
        known: dict[str, Value] = {} if seen is None else {
            "uid": seen.uid, "pid": seen.pid, "path": seen.path or "", "sha256": seen.sha256 or ""
        }
        with contextlib.suppress(AuditUnavailable):  # it is refused all the same
            await self._refusals.append("workload.refused", reason=reason, **known)
        return GRPCError(Status.PERMISSION_DENIED, "no identity issued")
