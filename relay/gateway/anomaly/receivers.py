"""Whom to tell, of what the configuration says."""

from pathlib import Path

from relay.gateway.anomaly.sending import Receiver
from relay.gateway.anomaly.settings import AlertSettings
from relay.gateway.anomaly.syslog import Syslog
from relay.gateway.anomaly.webhook import Webhook, secret_from_file


def receivers_of(settings: AlertSettings, directory: Path) -> dict[str, Receiver]:
    """By the name of their queues. Raises ConfigError."""
    found: dict[str, Receiver] = {}
    if settings.webhook is not None and settings.webhook_secret_file is not None:
        found["webhook"] = Webhook(settings.webhook, secret_from_file(directory / settings.webhook_secret_file))
    if settings.syslog is not None:
        ca_file = directory / settings.syslog_ca_file if settings.syslog_ca_file else None
        found["syslog"] = Syslog(settings.syslog, ca_file=ca_file)
    return found
