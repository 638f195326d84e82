"""SIGHUP: what gateway.toml says now takes effect where it can while the gateway runs, and the rest is named.

Nothing that runs is ended but what the new rules no longer allow. A file with a mistake changes nothing.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Final

from msgspec import Struct

from relay.gateway.anomaly.guard import Guard
from relay.gateway.audit.log import AuditLog
from relay.gateway.checks.inspect import Inspect
from relay.gateway.config import Config, Limits, load
from relay.gateway.errors import GatewayError
from relay.gateway.forward import Forward
from relay.gateway.policy.decisions import Policy
from relay.gateway.quota.quotas import Quotas
from relay.gateway.sessions import SessionLimits, Sessions
from relay.gateway.upstream.keys import ProviderKey
from relay.gateway.upstream.settings import Server, sections_of

_AT_ONCE: Final = ("rules", "routing", "limits", "inspect", "quotas", "anomaly", "log_level", "directory", "file")
_ROUTED: Final = ("models", "routes")  # of providers: nothing but `routing` comes of them
_PATHS: Final = {
    "session": "listen.session", "https": "listen.https", "health": "listen.health", "insecure": "listen.insecure",
    "workload_socket": "workload_api.socket", "workloads": "workload", "issuer": "oauth.issuer",
    "ek_roots": "attestation.ek_roots",
}
_log = logging.getLogger(__name__)


class Reload:
    """`config` is what is in force: that of the start, and what has been taken since."""

    def __init__(
        self, config: Config, *, policy: Policy, inspect: Inspect, quotas: Quotas, sessions: Sessions,
        keys: Sequence[ProviderKey], audit: AuditLog, forward: Forward, guard: Guard,
    ) -> None:
        self.config, self._forward, self._inspect, self._quotas = config, forward, inspect, quotas
        self._policy, self._sessions, self._keys, self._audit = policy, sessions, keys, audit
        self._guard = guard

    async def when(self, asked: asyncio.Event) -> None:
        """Runs until it is cancelled: once for each time that `asked` is set."""
        while True:
            await asked.wait()
            asked.clear()
            try:
                await self()
            except GatewayError as error:
                _log.error("the configuration is not reloaded, that of before stays in force: %s", error)

    async def __call__(self) -> None:
        """Raises ConfigError, which is on record, and AuditUnavailable; nothing has changed then."""
        try:
            new = load(self.config.directory / self.config.file)
            await self._audit.append("config.reload", before=self._policy.version)
            await self._policy.replace(new.rules)
        except GatewayError as error:
            await self._audit.append("config.refused", code=error.code, reason=str(error))
            raise
        restart = needs_restart(self.config, new)
        self.config = replace(
            self.config, rules=new.rules, limits=new.limits, log_level=new.log_level, inspect=new.inspect,
            quotas=new.quotas, anomaly=new.anomaly,
        )
        self._inspect.replace(new.inspect)
        self._quotas.replace(new.quotas)
        self._guard.apply(new.anomaly)
        if not any(key.startswith(("provider", "inference")) for key in restart):  # it may lead where nobody is yet
            self.config = replace(self.config, routing=new.routing)
            self._forward.routing = new.routing
        self._sessions.limit(session_limits(new.limits))
        set_log_level(new.log_level)
        for key in self._keys:
            key.look()
        _log.warning("the configuration is reloaded%s", f"; not before a restart: {', '.join(restart)}" * bool(restart))
        await self._audit.append("config.reloaded", version=self._policy.version, restart=", ".join(restart))


def needs_restart(old: Config, new: Config) -> list[str]:
    """Paths of the keys that differ and cannot change while a gateway runs."""
    found = []
    for name in (one.name for one in fields(Config) if one.name not in _AT_ONCE):
        before, after = getattr(old, name), getattr(new, name)
        if name == "providers":
            if len(before) != len(after):
                found.append("provider")
            else:
                for (where, one), other in zip(sections_of(before, None), after, strict=True):
                    found += _changed(where, one, other)
        elif isinstance(before, Struct) and type(before) is type(after):
            found += _changed(name, before, after)
        elif before != after:
            found.append(_PATHS.get(name, name))
    return found


def _changed(where: str, before: Struct, after: Struct) -> list[str]:
    return [
        f"{where}.{key}" for key in before.__struct_fields__
        if getattr(before, key) != getattr(after, key) and not (isinstance(before, Server) and key in _ROUTED)
    ]


def session_limits(limits: Limits) -> SessionLimits:
    return SessionLimits(
        limits.sessions, limits.handshakes, limits.handshake_s, limits.requests_per_session,
        full_per_second=limits.full_handshakes_per_s,
    )


def set_log_level(level: str) -> None:
    """Of our own words; libraries, which may quote what they see, say what is worth a warning whatever the level."""
    for name in ("relay", "store", "transport"):
        logging.getLogger(name).setLevel(level.upper())
