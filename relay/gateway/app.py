"""Composition: the one place that builds a gateway, starts its listeners and takes it down again."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from relay.gateway.admin import Admin
from relay.gateway.admin_alone import token_keys_of
from relay.gateway.anomaly.guard import QUARANTINED, Guard
from relay.gateway.anomaly.receivers import receivers_of
from relay.gateway.anomaly.sending import Sending
from relay.gateway.api import Api, ApiLimits
from relay.gateway.audit.log import AUDIT_FILE, AuditLog
from relay.gateway.audit.refusals import Refusals
from relay.gateway.backup import snapshot
from relay.gateway.checks.authenticate import Authenticate
from relay.gateway.checks.authorise import Authorise
from relay.gateway.checks.inspect import Inspect, made_inspector
from relay.gateway.checks.quota import Quota
from relay.gateway.checks.schema import Schema
from relay.gateway.checks.standing import Standing
from relay.gateway.config import Config
from relay.gateway.control import ControlServer
from relay.gateway.errors import AuditUnavailable, ConfigError, KeysUnavailable
from relay.gateway.examination import Examination
from relay.gateway.forward import Forward, ModelList
from relay.gateway.https import ROLES, bind, listen_https, make_app, make_health_app, make_plain_app
from relay.gateway.identity.attestation import Attestation
from relay.gateway.identity.ca import Authority
from relay.gateway.identity.callers import Callers
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.identity.loopback import LoopbackCallers
from relay.gateway.identity.measures import Measures
from relay.gateway.identity.oauth import make_oauth
from relay.gateway.identity.own import identity_of
from relay.gateway.identity.probes import Probes
from relay.gateway.identity.registrations import Registration
from relay.gateway.identity.revocation import Revocation
from relay.gateway.identity.token_keys import Rotation, TokenKeys
from relay.gateway.journal import Journal
from relay.gateway.keys import custody_of
from relay.gateway.listening import BEHIND_A_PROXY, Gate, HttpsLimits
from relay.gateway.pipeline import Answerer, Pipeline
from relay.gateway.policy.decisions import Policy
from relay.gateway.policy.reload import PolicyReload
from relay.gateway.public import make_public_app
from relay.gateway.quota.kept import Kept
from relay.gateway.quota.quotas import Quotas
from relay.gateway.quota.tap import Allowance
from relay.gateway.reload import Reload, session_limits
from relay.gateway.requests import Requests
from relay.gateway.sessions import Sessions
from relay.gateway.state.sqlcipher import open_state
from relay.gateway.taps.meter import Meter
from relay.gateway.taps.secrets import secret_filter
from relay.gateway.trace import WAITING_MAX, TraceStore
from relay.gateway.upstream.providers import opened
from relay.gateway.webpki import public_context, stay_current
from store.errors import StoreError
from store.keys import Unlock
from transport import telemetry
from transport.identity.tls import server_context
from transport.links.base import listen
from transport.primitives import Secret
from transport.tickets import TicketStore

if TYPE_CHECKING:
    from relay.gateway.identity.workloads.mount import Workloads

SPANS_FILE: Final = "spans.jsonl"
SWEEP_S: Final = 300.0
FLUSH_S: Final = 60.0  # how often the counts of refusals that had no record of their own are written
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """Where a gateway listens, with the ports that were really bound; "" where it does not."""

    id: str
    session: str
    https: str
    health: str
    public: str  # HOST:PORT
    origin: str  # of the public listener, as browsers see it
    workload_api: str = ""  # path of a Unix socket
    insecure: str = ""


async def serve(
    config: Config, passphrase: Unlock, *, ready: Callable[[Ready], None], stop: asyncio.Event,
    hurry: asyncio.Event | None = None, clock: Callable[[], float] = time.time, loopback_token: Secret | None = None,
    reload: asyncio.Event | None = None,
) -> None:
    """Runs a gateway until `stop` is set, then lets running requests finish for `limits.drain_s`, or until `hurry` is.

    `reload`: set it to have the configuration read anew.
    `loopback_token` opens `listen.insecure` to its holder; neither is taken without the other.
    Raises ConfigError, GatewayError, StoreError, LinkLost (an address that cannot be had); never once it is ready.
    """
    if (config.insecure is None) != (loopback_token is None):
        raise ConfigError("listen.insecure and --insecure-loopback go together, and one of them is missing",
                          hint="for a trial on this machine set both; else neither")
    async with AsyncExitStack() as stack:
        providers = await opened(stack, config.directory, config.providers, config.inference)
        database = stack.enter_context(open_state(config.directory, passphrase))
        audit = AuditLog(config.directory / AUDIT_FILE, sync=config.audit.sync, clock=clock)
        stack.push_async_callback(audit.close)
        tracing = telemetry.start("gateway", config.directory / SPANS_FILE, traces=WAITING_MAX)
        stack.callback(tracing.close)
        custody = custody_of(config.keys)
        authority = Authority.open(config.directory, passphrase, config.identity.lifetimes(), custody=custody)
        if authority.trust_domain != config.trust_domain:
            raise ConfigError(f"trust_domain: this folder's authority is of {authority.trust_domain}",
                              hint="put that name back, or make another gateway with `relay gateway init`")
        own = await identity_of(config, authority, stack, clock)
        identity = own.shown
        refusals = Refusals(audit, clock=clock)
        enrolment = Enrolment(
            database, authority, audit, refusals=refusals, elsewhere=own.elsewhere, clock=clock
        )
        await enrolment.load()
        traces = TraceStore(database, clock=clock)
        stack.push_async_callback(traces.close)
        own_id = str(identity.svid().id)
        policy = Policy(config.rules, enrolment.attested_tpm)
        stack.push_async_callback(policy.close)
        forward = Forward(providers, config.routing, audit, tracing)
        authorise = Authorise(policy, serves=lambda operation, model: forward.routing.serves(operation, model))
        quotas = Quotas(config.quotas, clock=clock)
        kept = Kept(quotas, database, config.directory / AUDIT_FILE, lambda: audit.end)
        await kept.load()
        stack.push_async_callback(kept.close)
        answerers: dict[str, Answerer] = {"models": ModelList()}
        for operation in ("chat", "responses", "embeddings", "messages", "infer"):
            answerers[operation] = forward
        keys = [one.key for one in providers.values() if one.key is not None]
        inspect = Inspect(config.inspect, made_inspector())
        stack.callback(inspect.close)
        receivers = receivers_of(config.alerts, config.directory)
        sending = Sending(database, receivers, least=config.alerts.least, gateway=own_id, clock=clock)
        enrolment.alerts.senders.append(sending)
        guard = Guard(
            database, config.anomaly, clock=clock,
            act=Measures(enrolment, audit, lambda: revocation, lambda number: stop_running(number)),
        )
        await guard.load()
        standing = Standing(guard)
        pipeline = Pipeline(
            checks=[Authenticate(enrolment, clock=clock), standing, authorise, Schema(), inspect, Quota(quotas)],
            still=authorise.still, observers=[guard],
            answerers=answerers, audit=audit, telemetry=tracing, node=own_id,
            taps=[Allowance, Meter, secret_filter(lambda: [key.latest().expose() for key in keys])],
        )
        journal = Journal(database, clock=clock)
        await journal.load()
        stack.push_async_callback(journal.close)  # idempotent: a failure to start must end it, too
        requests = Requests(
            journal=journal, pipeline=pipeline, enrolment=enrolment, traces=traces, telemetry=tracing,
            refusals=refusals, policy=policy, barred=standing.barred,
        )
        await requests.forget_ended()
        token_keys = await token_keys_of(database, custody, clock)
        probes = Probes(authority, enrolment, audit, clock=clock)
        sessions = Sessions(
            identity=identity, authority=authority, enrolment=enrolment, requests=requests, traces=traces, audit=audit,
            refusals=refusals, tickets=TicketStore(), clock=clock,
            limits=session_limits(config.limits),
            revocations=lambda: revocation.list, probes=probes, joining=own.joining,
            attestation=Attestation.load(config.ek_roots),
        )
        session = https = health = public = origin = insecure = ""
        if config.https is not None:
            https_door, https = bind(config.https)
            stack.callback(https_door.close)
        gate = Gate(HttpsLimits(), refusals)
        oauth, callers = make_oauth(
            config.issuer or f"https://{https}", keys=token_keys[0], enrolment=enrolment, authority=authority,
            revocations=lambda: revocation.list, audit=audit, refusals=refusals, body_s=gate.limits.body_s, clock=clock,
        )

        def api_for(callers: Callers, gate: Gate, limits: ApiLimits) -> Api:
            return Api(
                callers=callers, pipeline=pipeline, enrolment=enrolment, policy=policy, still=authorise.still,
                traces=traces, telemetry=tracing, refusals=refusals, gate=gate, limits=limits, clock=clock,
            )

        apis = [api := api_for(callers, gate, ApiLimits())]
        workloads = None if config.workload_socket is None else _workloads()(
            config.workload_socket, config.workloads, enrolment=enrolment, bundle=lambda: authority.bundle,
            keys=token_keys[1], audit=audit, refusals=refusals, clock=clock,
        )

        token_keys[0].changed.append(api.keys_changed)

        async def cut(ended: Sequence[Registration]) -> None:
            if workloads is not None:
                workloads.look_again()
            for one in apis:
                await one.cut(ended)
            await sessions.cut(ended)

        async def stop_running(enrolment: int) -> None:
            for one in apis:
                one.stop(enrolment, QUARANTINED)
            await requests.stop(enrolment, QUARANTINED)

        revocation = Revocation(config.directory, database, authority, enrolment, audit, cut=cut, clock=clock)
        await revocation.refresh()
        own_context = own.context(lambda: server_context(
            identity.svid(), authority.bundle, ROLES, require_client=False, revoked=lambda: revocation.list
        ))
        stack.push_async_callback(_ended, asyncio.create_task(own.keep_fresh()))
        https_app = make_app(
            authority=authority, enrolment=enrolment, sessions=sessions, traces=traces, refusals=refusals, gate=gate,
            revocation=revocation, doors=(api, oauth), clock=clock,
            jwt_svid_keys=token_keys[1] if workloads is not None else None,
        )
        if config.session is not None:
            listener = await listen(config.session, sessions.serve_link)
            stack.push_async_callback(listener.close)
            session = str(listener.endpoint)
        if config.https is not None:
            await listen_https(stack, https_app, https_door, own_context, gate)
        if config.health is not None:
            healthy = make_health_app(
                lambda: not stop.is_set() and clock() < min(authority.not_after, identity.svid().not_after)
            )
            health = await listen_https(stack, healthy, config.health, None)
        if config.public is not None:
            context = None
            if config.public.certificate is not None:
                context = public_context(*config.public.certificate)
                current = asyncio.create_task(stay_current(context, *config.public.certificate))
                stack.push_async_callback(_ended, current)
            door, public = bind(config.public.address)
            stack.callback(door.close)
            origin = config.public.origin or f"http://{public}"
            gate = Gate(HttpsLimits() if context is not None else BEHIND_A_PROXY)
            page = make_public_app(
                origin=origin, enrolment=enrolment, sessions=sessions, traces=traces, audit=audit, refusals=refusals,
                gate=gate, clock=clock,
            )
            await listen_https(stack, page, door, context, gate)
        if config.insecure is not None and loopback_token is not None:
            one_caller = LoopbackCallers(loopback_token, config.trust_domain, enrolment)
            gate = Gate(HttpsLimits(per_source=HttpsLimits.strangers, per_client=HttpsLimits.clients))
            plain = api_for(one_caller, gate, ApiLimits(per_identity=ApiLimits.requests))
            apis.append(plain)
            insecure = await listen_https(stack, make_plain_app(plain), config.insecure, None, gate)
            await audit.append("insecure.opened", id=str(one_caller.peer.id), address=insecure)
        admin = Admin(
            enrolment, traces, revocation, lambda: snapshot(config.directory, database), audit, guard,
            origin=origin or None,
        )
        admin.offer("policy_reload", PolicyReload(config, policy, audit))
        admin.offer("examine", Examination(
            config, node=own_id, listening=(session, https), authority=authority, probes=probes, policy=policy,
            providers=list(providers.values()), clock=clock, agent=own.finding,
        ))
        admin.offer("rotate_tokens", Rotation(token_keys, audit))
        admin.offer("usage", quotas.usage)
        if workloads is not None:
            stack.push_async_callback(workloads.close)
            await workloads.start()
        control = ControlServer(config.directory, admin)
        await control.start()
        stack.push_async_callback(control.close)
        reloading = Reload(
            config, policy=policy, inspect=inspect, quotas=quotas, sessions=sessions, audit=audit,
            keys=keys, forward=forward, guard=guard,
        )
        asked_to = reloading.when(reload or asyncio.Event())
        stack.push_async_callback(_kept, guard)
        sweeping = _sweep(journal, revocation, token_keys)
        for work in (asked_to, guard.keep(), sending.run(), _count_refusals(refusals), kept.keep(), sweeping):
            stack.push_async_callback(_ended, asyncio.create_task(work))
        await audit.append("gateway.started", id=own_id, policy=policy.version)
        ready(Ready(own_id, session, https, health, public, origin, str(config.workload_socket or ""), insecure))
        await stop.wait()
        limits = reloading.config.limits
        await asyncio.gather(
            sessions.drain(limits.drain_s, hurry),
            *(one.drain(limits.drain_s, hurry or asyncio.Event()) for one in apis),
        )
        await journal.close()
        await refusals.flush()
        await audit.append("gateway.stopped", id=own_id)


async def _kept(guard: Guard) -> None:
    try:
        await guard.close()
    except StoreError as error:
        _log.error("what is known of devices since half a minute is not kept: %s", error)


def _workloads() -> type["Workloads"]:
    """Imported where there is a socket for it alone: gRPC takes megabytes."""
    from relay.gateway.identity.workloads.mount import Workloads

    return Workloads


async def _count_refusals(refusals: Refusals) -> None:
    while True:
        await asyncio.sleep(FLUSH_S)
        with contextlib.suppress(AuditUnavailable):  # the log has said so; the counts wait
            await refusals.flush()


async def _sweep(journal: Journal, revocation: Revocation, token_keys: Sequence[TokenKeys]) -> None:
    while True:
        try:
            await journal.sweep()
            await revocation.refresh()
            for keys in token_keys:
                await keys.tend()
        except StoreError as error:
            _log.error("what has expired in the journal stays for now: %s", error)
        except KeysUnavailable as error:
            _log.error("a key that is due is not made: %s", error)
        await asyncio.sleep(SWEEP_S)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
