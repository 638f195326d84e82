"""`relay gateway check-config`: what a start would find wrong, found without starting, and what the file means.

Nothing is opened that needs a passphrase, and a gateway that runs is not disturbed.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from relay.gateway.anomaly.receivers import receivers_of
from relay.gateway.config import Config, load
from relay.gateway.errors import ConfigError, GatewayError
from relay.gateway.identity.attestation import Attestation
from relay.gateway.identity.ca import DAY_S, ROOT_CERTIFICATE_FILE, pem_ends
from relay.gateway.keys import custody_of
from relay.gateway.policy.decisions import Policy
from relay.gateway.policy.told import who_may_what
from relay.gateway.quota.settings import uncovered
from relay.gateway.quota.shown import told
from relay.gateway.upstream.keys import key_from_file
from relay.gateway.upstream.settings import Server, sections_of
from relay.gateway.webpki import public_context

AHEAD_S: Final = 14 * DAY_S
_ANY: Final = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


@dataclass(frozen=True)
class Problem:
    """`key`: its path in the file, "" for the file itself. A warning does not keep a gateway from starting."""

    key: str
    problem: str
    hint: str | None = None
    warning: bool = False


async def check(path: Path, now: float) -> tuple[list[Problem], list[str]]:
    """What is wrong, all of it, and in a few lines what the file means. What the file itself has wrong comes alone."""
    try:
        config = load(path)
    except ConfigError as error:
        key, colon, rest = str(error).partition(": ")
        return [Problem(key, rest, error.hint) if colon and " " not in key else Problem("", str(error), error.hint)], []
    found = [*_folder(config, now), *_listeners(config), *_certificate(config, now)]
    for key, work in (
        ("keys", lambda: custody_of(config.keys)), ("alerts", lambda: receivers_of(config.alerts, config.directory)),
        ("attestation.ek_roots", lambda: Attestation.load(config.ek_roots)),
    ):
        found += await _tried(key, work)
    for section, provider in sections_of(config.providers, config.inference):
        found += await _key(config, section, provider)
    found += await _tried("policy", lambda: Policy(config.rules))
    found += [
        Problem("quota", f"no quota counts {ids}", "add a [[quota]] with that `id`, if it shall not be unlimited", True)
        for ids in uncovered(config.quotas, [pattern for _, pattern in config.rules.patterns])
    ]
    elsewhere = config.inference.models if config.inference else ()
    who = [] if any(one.key == "policy" for one in found) else await who_may_what(
        config.rules, config.trust_domain, elsewhere)
    return found, [*_places(config), *_guarded(config), *map(told, config.quotas.rules), *who]


async def _tried(key: str, work: Callable[[], object]) -> list[Problem]:
    try:
        await asyncio.to_thread(work)
    except GatewayError as error:
        return [Problem(key, str(error).removeprefix(f"{key}: "), error.hint)]
    return []


async def _key(config: Config, section: str, provider: Server) -> list[Problem]:
    if provider.key_file is not None:
        path, key = config.directory / provider.key_file, f"{section}.key_file"
        found = await _tried(key, lambda: key_from_file(path))
        if not found and path.stat().st_mode & 0o077:
            found.append(Problem(key, "others than its owner can read or change the key", f"chmod 600 {path}", True))
        return found
    if provider.key_env is not None and provider.key_env not in os.environ:
        return [Problem(f"{section}.key_env", f"the variable {provider.key_env} is not set here",
                        "it has to be where the gateway is started", warning=True)]
    if (place := provider.secret) is not None:
        def read() -> object:
            from relay.gateway.upstream.aws_secrets import read_secret

            return read_secret(place)

        return await _tried(f"{section}.secret", read)
    return []


def _folder(config: Config, now: float) -> Iterator[Problem]:
    root = config.directory / ROOT_CERTIFICATE_FILE
    if not root.is_file():
        yield Problem("", f"there is no gateway in {config.directory}", "`relay gateway init DIR` makes one")
    else:
        yield from _ends("", root, now, "run `relay gateway rotate-key root`")


def _certificate(config: Config, now: float) -> Iterator[Problem]:
    if config.public is not None and config.public.certificate is not None:
        try:
            public_context(*config.public.certificate)
        except ConfigError as error:
            yield Problem("public.cert_file", str(error).removeprefix("public: "), error.hint)
        else:
            yield from _ends("public.cert_file", config.public.certificate[0], now, "renew it; no restart is needed")


def _ends(key: str, file: Path, now: float, hint: str) -> Iterator[Problem]:
    left = pem_ends(file.read_bytes()) - now
    if left < AHEAD_S:
        day = time.strftime("%Y-%m-%d", time.gmtime(now + left))
        yield Problem(key, f"the certificate {file.name} {'ended' if left < 0 else 'ends'} {day}", hint, left >= 0)


def _listeners(config: Config) -> Iterator[Problem]:
    session = config.session
    listeners = {
        "listen.session": session.host_port() if session is not None and session.scheme == "tcp" else None,
        "listen.https": config.https, "listen.health": config.health, "listen.insecure": config.insecure,
        "listen.public": None if config.public is None else config.public.address,
    }
    taken: dict[int, tuple[str, str]] = {}
    for key, place in listeners.items():
        if place is None:
            continue
        host, port = place
        try:
            family, kind, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as trial:
                trial.bind(address)
        except OSError:
            yield Problem(key, f"this machine has no address {host}", "`ip address` lists those it has")
        other = taken.setdefault(port, (key, host)) if port else (key, host)
        if other[0] != key and (other[1] == host or {other[1], host} & set(_ANY)):
            yield Problem(key, f"port {port} is that of {other[0]}, too", "give each a port of its own")


def _places(config: Config) -> Iterator[str]:
    yield f"this is spiffe://{config.trust_domain}/gateway/{config.name}"
    if config.session is not None:
        yield f"encrypted sessions of edges on {config.session}"
    if config.https is not None:
        yield f"hops, joining and requests by HTTPS on {config.https[0]}:{config.https[1]}"
    if config.public is not None:
        yield f"the page for phones on {config.public.address[0]}:{config.public.address[1]}"
    for _, provider in sections_of(config.providers, config.inference):
        yield f"{provider.name} is asked at {urlsplit(provider.base_url).netloc}"
    yield from config.routing.told()


def _guarded(config: Config) -> Iterator[str]:
    """What becomes of attacks, and who is told of devices that go astray."""
    for _, rule in config.inspect.rules:
        models = " or ".join(rule.models) if rule.models is not None else "any model"
        yield f"what reads like an attack, from {rule.id or 'anybody'} to {models}: {rule.mode}"
    places = [urlsplit(config.alerts.webhook).netloc] if config.alerts.webhook is not None else []
    if places := [*places, *filter(None, [config.alerts.syslog])]:
        yield f"alerts of devices that are {config.alerts.least}, or worse, go to {' and '.join(places)}"
