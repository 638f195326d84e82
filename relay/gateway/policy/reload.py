"""Brings what gateway.toml now says of policy into force, in a gateway that runs. Nothing else of it is read anew."""

from typing import Any

from relay.gateway.audit.log import AuditLog
from relay.gateway.config import Config, load
from relay.gateway.policy.decisions import Policy


class PolicyReload:
    """From the next decision on; answers under way that are no longer allowed end at their next chunk."""

    def __init__(self, config: Config, policy: Policy, audit: AuditLog) -> None:
        self._config, self._policy, self._audit = config, policy, audit

    async def __call__(self) -> dict[str, Any]:
        """Raises ConfigError, with the old policy in force, and AuditUnavailable likewise."""
        rules = load(self._config.directory / self._config.file).rules
        before = self._policy.version
        await self._audit.append("policy.reload", before=before)
        await self._policy.replace(rules)
        await self._audit.append("policy.loaded", version=self._policy.version)
        return {"version": self._policy.version, "changed": before != self._policy.version}
