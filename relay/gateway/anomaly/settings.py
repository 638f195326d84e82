"""What gateway.toml says of suspicion, `[anomaly]`, and of whom to tell, `[alerts]`; typed and strict."""

import re
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from relay.gateway.anomaly.ladder import Thresholds
from relay.gateway.errors import ConfigError
from relay.gateway.upstream.base import is_loopback
from transport.errors import BadInput
from transport.links.base import Endpoint

Score = Annotated[float, Meta(gt=0, le=1e9)]
_URL: Final = re.compile(r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:]+\]|[a-z0-9.-]+)(:[0-9]{1,5})?(/[!-\"$-~]*)?")


class Anomaly(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Scores at which states begin; `revoke`: whether a device may be ended for good without a person, and at what."""

    warn: Score = 20.0
    throttle: Score = 40.0
    quarantine: Score = 80.0
    revoke: bool = False
    revoke_at: Score = 120.0
    throttled_per_minute: Annotated[int, Meta(ge=1, le=6_000)] = 30

    def thresholds(self) -> Thresholds:
        return Thresholds(self.warn, self.throttle, self.quarantine, self.revoke_at if self.revoke else None)


AS_BUILT: Final = Anomaly()


class AlertSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whom to tell. `least`: from which state on; copied keys and tried invitations are told in any case."""

    webhook: str | None = None
    webhook_secret_file: str | None = None
    syslog: str | None = None
    syslog_ca_file: str | None = None
    least: Literal["warned", "throttled", "quarantined", "revoked"] = "throttled"


NOBODY: Final = AlertSettings()


def checked_anomaly(anomaly: Anomaly) -> Anomaly:
    """Raises ConfigError."""
    scores = [anomaly.warn, anomaly.throttle, anomaly.quarantine, *([anomaly.revoke_at] if anomaly.revoke else [])]
    if scores != sorted(set(scores)):
        raise ConfigError("anomaly: each state begins at a higher score than the one before",
                          hint="as in warn = 20, throttle = 40, quarantine = 80, revoke_at = 120")
    return anomaly


def checked_alerts(alerts: AlertSettings) -> AlertSettings:
    """Raises ConfigError that names the key."""
    if (alerts.webhook is None) ^ (alerts.webhook_secret_file is None):
        raise ConfigError("alerts.webhook: set it together with alerts.webhook_secret_file",
                          hint='as in webhook_secret_file = "webhook.secret"')
    if alerts.webhook is not None:
        _check_url(alerts.webhook)
    if alerts.syslog is not None:
        _check_syslog(alerts.syslog)
    if alerts.syslog_ca_file is not None and not (alerts.syslog or "").startswith("tls:"):
        raise ConfigError("alerts.syslog_ca_file: this is for tls:HOST:PORT alone")
    return alerts


def _check_url(url: str) -> None:
    found = _URL.fullmatch(url)
    if found is None:
        raise ConfigError("alerts.webhook: this is not the URL of a receiver", hint='as in "https://ops.example/hook"')
    if found["scheme"] == "http" and not is_loopback(found["host"].strip("[]")):
        raise ConfigError("alerts.webhook: https:// only, but for an address of this machine",
                          hint="put a proxy with TLS before the receiver")


def _check_syslog(text: str) -> None:
    scheme, _, place = text.partition(":")
    try:
        host = "" if scheme == "unix" else Endpoint.parse(f"tcp:{place}").host_port()[0]
        good = place.startswith("/") if scheme == "unix" else scheme == "tls" or (scheme == "tcp" and is_loopback(host))
    except BadInput:
        good = False
    if not good:
        raise ConfigError("alerts.syslog: this is no place of a syslog; without TLS it stays on this machine",
                          hint='one of "unix:/dev/log", "tls:HOST:6514", "tcp:127.0.0.1:514"')
