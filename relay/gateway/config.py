"""DIR/gateway.toml: typed, and strict.

An unknown key is an error that names its path: a limit that is misspelt must not silently be no limit.
"""

import difflib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from relay.gateway.anomaly.settings import (
    AS_BUILT,
    NOBODY,
    AlertSettings,
    Anomaly,
    checked_alerts,
    checked_anomaly,
)
from relay.gateway.audit.settings import AUDIT, Audit
from relay.gateway.errors import ConfigError, GatewayError
from relay.gateway.identity.ca import DAY_S, Lifetimes
from relay.gateway.identity.workloads.entries import Workload, problem
from relay.gateway.inspection.settings import FLAG, Inspections, Rule, checked_inspections
from relay.gateway.key_settings import SOFTWARE_KEYS, Keys, checked_keys
from relay.gateway.policy.cedar import named
from relay.gateway.policy.settings import Allow, Group, Policies, Rules, checked
from relay.gateway.quota.settings import UNLIMITED, Limiting, PriceEntry, Quota, checked_quotas
from relay.gateway.upstream.routing import Routing
from relay.gateway.upstream.settings import Alias, InferenceServer, Provider, routing_of
from transport.errors import BadInput
from transport.identity.source import socket_path
from transport.identity.svid import SpiffeId, check_trust_domain
from transport.links.base import Endpoint

CONFIG_FILE: Final = "gateway.toml"
_SIZE_MAX: Final = 1 << 20
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_LOOPBACK_ADDRESSES: Final = ("127.0.0.1", "::1")  # a name may mean another machine
_LOOPBACK_HOSTS: Final = ("127.0.0.1", "[::1]", "localhost")
_ORIGIN: Final = re.compile(
    r"https?://(?P<host>[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:]{2,39}\])(:(?P<port>[1-9][0-9]{0,4}))?",
)
_EXPLAINED: Final = "the gateway.toml that init writes explains every key"

Seconds = Annotated[float, Meta(gt=0, le=3600)]


class _Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Listen(_Section, frozen=True, kw_only=True):
    """Where to listen; what is left out is not opened."""

    session: str | None = None
    https: str | None = None
    health: str | None = None
    public: str | None = None
    insecure: str | None = None


class PublicFile(_Section, frozen=True, kw_only=True):
    """The listener that browsers see: under which address, and by which certificate of a public authority."""

    origin: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


class OAuth(_Section, frozen=True, kw_only=True):
    """`issuer`: the HTTPS listener's URL as clients know it; left out, it is made of the listener's address."""

    issuer: str | None = None


class Limits(_Section, frozen=True, kw_only=True):
    """How much at once. `handshakes` counts sessions that have not shown who they are, `full_handshakes_per_s` the
    handshakes without a ticket that are begun, of which one address has a twentieth and one hop a quarter.
    """

    sessions: Annotated[int, Meta(ge=1, le=100_000)] = 2_000
    handshakes: Annotated[int, Meta(ge=2, le=10_000)] = 64
    handshake_s: Seconds = 15.0
    full_handshakes_per_s: Annotated[float, Meta(ge=1, le=100_000)] = 400.0
    requests_per_session: Annotated[int, Meta(ge=1, le=32)] = 32
    drain_s: Seconds = 20.0


class Identity(_Section, frozen=True, kw_only=True):
    """Where the gateway's own SVID comes from: its own authority, or the SPIFFE agent at `socket`. And how long
    certificates may live at most; the gateway does not start with one that lives longer.
    """

    source: Literal["embedded", "spire"] = "embedded"
    socket: str | None = None

    svid_max_s: Annotated[int, Meta(ge=600, le=3_600)] = 3_600
    intermediate_max_days: Annotated[int, Meta(ge=1, le=30)] = 30
    root_max_days: Annotated[int, Meta(ge=100, le=3_650)] = 3_650

    def lifetimes(self) -> Lifetimes:
        return Lifetimes(self.svid_max_s, self.intermediate_max_days * DAY_S, self.root_max_days * DAY_S)


class WorkloadApi(_Section, frozen=True, kw_only=True):
    """Where programs on this host get their identities: a Unix socket that all of them may reach."""

    socket: Annotated[str, Meta(min_length=1)]


class AttestationFile(_Section, frozen=True, kw_only=True):
    """Whose TPMs are believed; see identity.attestation."""

    ek_roots: list[str] = []


class _File(_Section, frozen=True, kw_only=True):
    trust_domain: str
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")] = "main"
    log_level: Literal["error", "warning", "info"] = "warning"
    audit: Audit = AUDIT
    listen: Listen = Listen()
    public: PublicFile | None = None
    oauth: OAuth = OAuth()
    provider: Provider | list[Provider]
    model: list[Alias] = []
    inference: InferenceServer | None = None
    limits: Limits = Limits()
    identity: Identity = Identity()
    workload_api: WorkloadApi | None = None
    workload: list[Workload] = []
    keys: Keys = SOFTWARE_KEYS
    attestation: AttestationFile = AttestationFile()
    group: list[Group] = []
    allow: list[Allow] = []
    policy: Policies = Policies()
    quota: list[Quota] = []
    price: list[PriceEntry] = []
    inspect: list[Rule] = []
    anomaly: Anomaly = AS_BUILT
    alerts: AlertSettings = NOBODY


@dataclass(frozen=True)
class Public:
    """`origin` None: of the loopback address, whose port the system is to choose. `certificate` None: plain HTTP."""

    address: tuple[str, int]
    origin: str | None
    certificate: tuple[Path, Path] | None  # chain and key, PEM


@dataclass(frozen=True)
class Config:
    """A configuration that has been checked.

    `directory` holds `file`, which it is, and all that is named by a relative path.
    """

    directory: Path
    file: str
    trust_domain: str
    name: str
    session: Endpoint | None
    https: tuple[str, int] | None
    health: tuple[str, int] | None
    providers: tuple[Provider, ...]
    inference: InferenceServer | None
    limits: Limits
    identity: Identity
    rules: Rules
    routing: Routing
    public: Public | None = None
    keys: Keys = SOFTWARE_KEYS
    ek_roots: tuple[Path, ...] = ()
    workload_socket: Path | None = None
    workloads: tuple[Workload, ...] = ()
    issuer: str | None = None  # of access tokens, where the file names one
    log_level: str = "warning"
    insecure: tuple[str, int] | None = None  # plain HTTP, for `--insecure-loopback`
    inspect: Inspections = FLAG
    quotas: Limiting = UNLIMITED
    anomaly: Anomaly = AS_BUILT
    audit: Audit = AUDIT
    alerts: AlertSettings = NOBODY


def load(path: Path) -> Config:
    """Reads and checks a configuration file. Raises ConfigError, whose message names the key at fault."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {(error.strerror or '').lower()}",
            hint="name it by --config; `relay gateway init DIR` makes one",
        ) from None
    return parse(data, path.parent.resolve(), path.name)


def parse(data: bytes, directory: Path, name: str = CONFIG_FILE) -> Config:
    """See `load`."""
    if len(data) > _SIZE_MAX:
        raise ConfigError("the configuration is over 1 MiB", hint=_EXPLAINED)
    try:
        table = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        place = re.search(r"\(at ([a-z0-9 ,]+)\)", str(error))
        raise ConfigError(f"the configuration is not TOML{f', {place[1]}' if place else ''}", hint=_EXPLAINED) from None
    try:
        file = msgspec.convert(table, _File)
    except msgspec.ValidationError as error:
        wrong = _explain(str(error))
        raise ConfigError(wrong, hint=_nearest(wrong) or _EXPLAINED) from None
    return _checked(file, directory, name)


def _checked(file: _File, directory: Path, name: str) -> Config:
    with _At("trust_domain"):
        check_trust_domain(file.trust_domain)
        SpiffeId(file.trust_domain, f"/gateway/{file.name}")
    session = None
    if file.listen.session is not None:
        with _At("listen.session"):
            session = Endpoint.parse(file.listen.session)
            if session.scheme not in ("tcp", "unix"):
                raise BadInput("the session listener is tcp:HOST:PORT or unix:PATH", hint='as in "tcp:127.0.0.1:7443"')
    https = _address("listen.https", file.listen.https)
    health = _address("listen.health", file.listen.health)
    if health is not None and health[0] not in _LOOPBACK:
        raise ConfigError("listen.health: plain HTTP stays on loopback", hint='for example "127.0.0.1:8081"')
    insecure = _address("listen.insecure", file.listen.insecure)
    if insecure is not None and insecure[0] not in _LOOPBACK_ADDRESSES:
        raise ConfigError("listen.insecure: plain HTTP stays on a loopback address", hint='as in "127.0.0.1:8080"')
    if session is None and https is None:
        raise ConfigError("listen: neither `session` nor `https` is set, so nobody could reach the gateway",
                          hint='for example https = "127.0.0.1:8443"')
    providers = tuple(file.provider) if isinstance(file.provider, list) else (file.provider,)
    inference = file.inference
    routing = routing_of(providers, inference, file.model)
    with _At("identity.socket"):
        if (file.identity.source == "spire") != (file.identity.socket is not None):
            raise ConfigError('`source = "spire"` and `socket` go together',
                              hint='as in socket = "unix:///run/spire/agent.sock"')
        if file.identity.socket is not None:
            socket_path(file.identity.socket)
    names = sorted({name for operation, name in routing.names if operation != "infer"})
    served = () if inference is None else inference.models
    rules = checked(directory, file.group, file.allow, file.policy, names, elsewhere={*served} - {*names})
    for rule in rules.cedar:
        for model in named("Model", rule.policy):
            if not routing.knows(model):
                raise ConfigError(f"{rule.name}: no provider serves {model[:128]}, so the rule could never apply to it",
                                  hint="name it in the `models` of a [[provider]], or by a [[model]]")
    closed = file.policy.opa is None and not file.policy.cedar  # so that [[allow]] says it all
    quotas = checked_quotas(
        file.quota, file.price, groups=file.group, allows=file.allow if closed else None,
        models={*names, *(one for allow in file.allow for one in allow.models), *served},
        uncounted=served,
    )
    return Config(
        directory, name, file.trust_domain, file.name, session, https, health, providers, inference, file.limits,
        file.identity, rules, routing, _public(file, directory), checked_keys(file.keys),
        tuple(directory / one for one in file.attestation.ek_roots), _workload_socket(file, directory),
        tuple(file.workload), _issuer(file), file.log_level, insecure,
        checked_inspections(file.inspect, {*rules.models, *(() if inference is None else inference.models)}),
        quotas,
        checked_anomaly(file.anomaly), file.audit, checked_alerts(file.alerts),
    )


def _workload_socket(file: _File, directory: Path) -> Path | None:
    if file.workload_api is None:
        if file.workload:
            raise ConfigError("workload: there is no socket for this",
                              hint='add socket = "/run/causeway/workload.sock" to [workload_api]')
        return None
    with _At("workload"):
        wrong = problem(file.workload, file.trust_domain)
    if wrong:
        raise ConfigError(wrong, hint="give each an ID of its own, as in /workload/reports")
    return directory / file.workload_api.socket


def _issuer(file: _File) -> str | None:
    """As the tokens have it, and clients compare it (RFC 8414 section 2). Raises ConfigError."""
    text = file.oauth.issuer
    if text is None:
        return None
    match = _ORIGIN.fullmatch(text)
    if match is None or not text.startswith("https:") or match["port"] == "443" or int(match["port"] or 1) > 65_535:
        raise ConfigError("oauth.issuer: this is not the URL of the HTTPS listener",
                          hint='like "https://gw.example:8443": lower case, no path, no /')
    return text


def _public(file: _File, directory: Path) -> Public | None:
    address, section = _address("listen.public", file.listen.public), file.public or PublicFile()
    if address is None:
        if file.public is not None:
            raise ConfigError("public: there is no listener for this", hint='add public = "0.0.0.0:443" to [listen]')
        return None
    if (section.cert_file is None) != (section.key_file is None):
        raise ConfigError("public: set both of `cert_file` and `key_file`, or neither",
                          hint='as in cert_file = "public.pem", key_file = "public.key"')
    certificate = None
    if section.cert_file is not None and section.key_file is not None:
        certificate = (directory / section.cert_file, directory / section.key_file)
    elif address[0] not in _LOOPBACK:
        raise ConfigError("listen.public: plain HTTP stays on loopback",
                          hint="name a certificate by public.cert_file and public.key_file, or put a proxy before it")
    if section.origin is None:
        if certificate is not None:
            raise ConfigError("public.origin: this key is missing", hint='as in origin = "https://gw.example"')
        return Public(address, _own_origin(*address), None)
    _check_origin(section.origin, plain=certificate is None)
    return Public(address, section.origin, certificate)


def _own_origin(host: str, port: int) -> str | None:
    if port == 0:
        return None
    return f"http://{f'[{host}]' if ':' in host else host}{'' if port == 80 else f':{port}'}"


def _check_origin(text: str, *, plain: bool) -> None:
    """Raises ConfigError unless it is written as browsers write it (RFC 6454 section 6.1): what they send is compared.

    HTTP needs `plain`, and this machine's own address, for which alone browsers take it to be secure.
    """
    match, secure = _ORIGIN.fullmatch(text), text.startswith("https:")
    if match is None or int(match["port"] or 1) > 65_535 or match["port"] == ("443" if secure else "80"):
        raise ConfigError("public.origin: this is not the origin of a page, as browsers write it",
                          hint='like "https://gw.example" or "https://gw.example:8443": lower case, no path, no /')
    if not secure and not plain:
        raise ConfigError("public.origin: with a certificate it begins with https://", hint="change the origin")
    if not secure and match["host"] not in _LOOPBACK_HOSTS:
        raise ConfigError("public.origin: without TLS browsers let a page use Bluetooth at their own machine alone",
                          hint='use https://, or for a trial origin = "http://127.0.0.1:PORT"')


class _At:
    """Puts the key's path before an error's message."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BadInput | GatewayError):
            raise ConfigError(f"{self._where}: {error}", hint=error.hint) from None


def _address(key: str, text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    try:
        return Endpoint.parse(f"tcp:{text}").host_port()
    except BadInput:
        raise ConfigError(f"{key}: this is not HOST:PORT", hint='for example "127.0.0.1:8443"') from None


def _explain(text: str) -> str:
    """msgspec's words with the path in TOML's manner: `limits.drain_s: expected ...`."""
    message, _, place = text.partition(" - at `")
    path = place.rstrip("`").removeprefix("$").lstrip(".")
    path = re.sub(r"\[\.\.\.\]", "[]", path)
    unknown = re.search(r"unknown field `([^`]{1,64})`", message)
    if unknown:
        return f"{path + '.' if path else ''}{unknown[1]}: there is no such key"
    missing = re.search(r"required field `([^`]{1,64})`", message)
    if missing:
        return f"{path + '.' if path else ''}{missing[1]}: this key is missing"
    return f"{path}: {message[:1].lower()}{message[1:200]}"


def _nearest(wrong: str) -> str | None:
    """The example's line of that key; if there is no such key, the one that was probably meant, and its section."""
    path, _, what = wrong.partition(": ")
    path, section, known = re.sub(r"\[\d*\]", "", path), "", dict[str, str]()
    for line in EXAMPLE.splitlines():
        if found := re.match(r"#? ?(?:\[{1,2}(?P<section>\w+)\]|(?P<key>\w+) =)", line):
            section = found["section"] or section
            name = section if found["section"] else f"{section}.{found['key']}".lstrip(".")
            known.setdefault(name, " ".join(line.lstrip("# ").split()))
    if what != "there is no such key":
        return f"as in {known[path]}" if path in known and "{" not in known[path] else None
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.75)
    return f"did you mean {near[0]}?" if near else None


EXAMPLE: Final = '''\
# Causeway gateway. Paths are relative to this file. Unknown keys are errors.

trust_domain = "{trust_domain}"
# name = "main"                      # this gateway's ID is spiffe://{trust_domain}/gateway/main
# log_level = "warning"              # or error, info; SIGHUP reads this file anew (docs/OPERATIONS.md)

[listen]
session = "tcp:127.0.0.1:7443"       # encrypted sessions straight from edges; leave out to accept hops only
https = "127.0.0.1:8443"             # tunnels of hops, edges by wss://HOST:PORT/v1/edge, joining of hops and gateways
health = "127.0.0.1:8081"            # plain /healthz, on loopback only
# public = "0.0.0.0:443"             # for browsers: the page /hop, by which a phone is a hop; see [public]
# insecure = "127.0.0.1:8080"        # plain HTTP with one token, for a trial: `serve --insecure-loopback FILE`

# [public]
# origin = "https://gw.example"      # as browsers see it; a QR code of `relay gateway invite hop/NAME --qr` leads there
# cert_file = "public.pem"           # of a public authority, with its chain; read again when it changes
# key_file = "public.key"            # without both: plain HTTP on loopback, for a proxy that ends TLS, or for a trial

[provider]                           # any OpenAI-compatible API; several, and Anthropic, Azure: docs/PROVIDERS.md
base_url = "https://api.openai.com/v1"
key_file = "provider.key"            # or: key_env = "NAME"; the key never leaves this process but to base_url
# secret = {{ id = "prod/provider", region = "eu-central-1" }}  # or AWS Secrets Manager: docs/OPERATIONS.md
# connect_s = 10.0
# first_byte_s = 120.0
# idle_s = 60.0
# api = "openai"                     # or "azure", with api_version, or "anthropic"; name = "..." if there are several
# models = ["gpt-4o-mini"]           # those that it serves; left out, all that no other [[provider]] names
# routes = ["chat"]                  # of "chat", "responses" and "embeddings", if it lacks one
# breaker_failures = 5               # after so many in a row it is not asked
# breaker_open_s = 15                # for so long

# [[model]]                          # another name for a model, and whom to ask for it, in this order
# name = "assistant"
# providers = ["openai"]
# as = "gpt-4o-mini"

# [oauth]                            # /oauth/token: tokens for clients that ask by HTTPS (docs/HTTPS.md)
# issuer = "https://gw.example:8443" # listen.https as clients know it; left out, it is https:// and that address

# [limits]
# sessions = 2000
# handshakes = 64                    # sessions that have not yet shown who they are; a quarter is kept for hops
# handshake_s = 15.0
# full_handshakes_per_s = 400        # without a ticket; one address has a twentieth, one hop a quarter
# requests_per_session = 32
# drain_s = 20.0                     # how long running requests may take after SIGTERM

# [audit]                            # of audit.jsonl: a call is written before the provider is asked, and at the end
# sync = "group"                     # and is on the disk some ms later; "each": that is waited for, as with all else

# [identity]
# source = "spire"                   # its own SVID and the trust bundle come from a SPIRE agent (docs/SPIRE.md)
# socket = "unix:///run/spire/agent.sock"
#                                    # the longest that certificates may live; new ones are made for that:
# svid_max_s = 3600                  # of devices and of the gateway
# intermediate_max_days = 30         # `relay gateway rotate-key` makes a new one
# root_max_days = 3650               # `relay gateway rotate-key root`, three times in 91 days

# [workload_api]                     # identities for programs on this host: the SPIFFE Workload API (docs/WORKLOADS.md)
# socket = "/run/causeway/workload.sock"
# [[workload]]                       # who gets which; all that is given must fit
# id = "/workload/reports"
# uid = 1001
# path = "/usr/bin/reports"          # of the file itself, no link to it
# sha256 = "..."                     # of that file's content

# [keys]                             # who holds the gateway's own keys: docs/KEYS.md; set it by `init --keys`
# source = "pkcs11"                  # a token (HSM); or "kms" with region = "..."; or "file", sealed here: the default
# module = "/usr/lib/softhsm/libsofthsm2.so"
# token = "causeway"
# pin_file = "/etc/causeway/pin"     # left out: the systemd credential gateway-token-pin

# [attestation]                      # of devices that join by `edge join --tpm` (docs/TPM.md)
# ek_roots = ["tpm-makers.pem"]      # who certifies their TPMs; without this anybody's word is taken for a TPM

# [anomaly]                          # who does what he does not usually do is slowed down or cut off (docs/ANOMALY.md)
# warn = 20.0                        # scores at which states begin; much higher ones: hardly anything is unusual
# throttle = 40.0
# quarantine = 80.0
# revoke = false                     # true: a device may be revoked without a person, at revoke_at = 120.0
# throttled_per_minute = 30          # what a device may ask while it is slowed down
# [alerts]                           # whom to tell, once each time; also of copied keys (docs/ANOMALY.md)
# webhook = "https://ops.example/hook"
# webhook_secret_file = "webhook.secret"
# syslog = "unix:/dev/log"           # or "tls:HOST:6514" with syslog_ca_file = "ca.pem", or "tcp:127.0.0.1:514"
# least = "throttled"                # from which state on: warned, throttled, quarantined, revoked

# [inference]                        # a server of the open inference protocol (Triton): /v2/models/NAME/infer
# base_url = "http://127.0.0.1:8000"
# models = ["defect-detection"]

# Who may use which model. Nothing is allowed that is not named here. `*` stands for one whole path segment.
[[allow]]
id = "/edge/*"
models = ["gpt-4o-mini"]

# How much of it: requests, tokens and money in any minute, hour, day or month; docs/QUOTAS.md.
# [[quota]]
# name = "edge-hour"
# id = "/edge/*"                     # or group = "factory-floor"
# per = "device"                     # or "role": all of them together
# models = ["gpt-4o-mini"]           # counted together; left out: any
# window = "1h"
# requests = 600
# tokens = 200000
# money = "0.50"
# [[price]]                          # of a million tokens; needed where money is limited
# model = "gpt-4o-mini"
# input = "0.15"
# output = "0.60"
# output_max = 4096                  # what is set aside for an answer whose request names no limit

# For more than that: groups of IDs, and rules in Cedar beside [[allow]], or OPA in their place (docs/POLICY.md).
# `relay gateway policy check` tries them, `relay gateway policy reload` brings them into force.
# [[group]]
# name = "factory-floor"
# ids = ["/edge/factory-floor/*"]
# [policy]
# cedar = ["policy.cedar"]           # or: opa = "http://127.0.0.1:8181/v1/data/causeway/allow"

# [[inspect]]                        # prompts that try to take over the model (docs/INSPECTION.md); the first that fits
# mode = "block"                     # or off, log, flag; whom no rule fits: flag
# id = "/edge/*"                     # left out: everybody
# models = ["gpt-4o-mini"]           # left out: any
# roles = ["user", "tool"]           # whose words are looked at; left out: all but the assistant's
# flag_at = 0.5                      # thresholds in place of the model's own; likewise block_at
'''
