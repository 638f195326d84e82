"""Whom to tell, of what the configuration says."""

from relay.gateway.anomaly.sending import Receiver
from relay.gateway.anomaly.settings import AlertSettings
from relay.gateway.anomaly.syslog import Syslog
from relay.gateway.anomaly.webhook import Webhook, secret_from_file


def receivers_of(settings: AlertSettings) -> dict[str, Receiver]:
    """By the name of their queues. Raises ConfigError."""
    found: dict[str, Receiver] = {}
    if settings.webhook is not None and settings.secret_file is not None:
        found["webhook"] = Webhook(settings.webhook, secret_from_file(settings.secret_file))
    if settings.syslog is not None:
        found["syslog"] = Syslog(*settings.syslog, ca_file=settings.syslog_ca)
    return found
