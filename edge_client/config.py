"""Settings of this edge: where its home is, which model files it uses, what it asks a gateway for.

`config.toml` in the home is optional; nothing secret belongs in it:

    [model]
    path = "/models/other.gguf"     # any GGUF chat model; without it the installed SmolLM2
    context = 4096                  # tokens held at once
    rest_after_s = 900              # `edge serve` gives a model's memory back after so long without a prompt; 0: never
    [embedder]
    path = "/models/minilm.gguf"    # any GGUF embedding model of 384 dimensions
    [relay]
    model = "gpt-4o-mini"           # what a relayed prompt asks for; without it the gateway's first
    endpoints = ["tcp:10.0.0.1:7443"]   # hops and gateways, the quickest first; without it the invitation's
    give_up_s = 60                  # without a way to the gateway for so long, a question is left in the outbox
    early_data = true               # a question leaves with the handshake; false waits for the gateway's welcome, a
                                    # round trip: then a gateway restored from a backup interrupts no new question
    padding = "bucket"              # or "constant": hides when, about 5 kB/s each way; or "off": hides nothing
    discover = false                # true: after the endpoints, try hops that announce themselves on this network
    wss_trust = "bundle"            # or "webpki": whose certificate a wss endpoint shows; no secret depends on it
    [router]
    share_relayed = 0.3             # pay for about this share of exam questions; of short everyday ones it is far less
    quality = 0.8                   # or: keep this share of what relaying everything gains over relaying nothing
    threshold = 0.25                # or: relay what needs a larger model so much (`edge ask --explain` shows it)
    [store]
    lock_after_s = 28800            # `edge serve` locks the store after so long without a request; 0: never
    [identity]
    source = "spire"                # an identity from the SPIRE agent of this machine, without joining
    socket = "unix:///run/spire/agent.sock"
    [bluetooth]
    radio = "system"                # for ble and phone: or "system:hci1", "hci:TRANSPORT" (dongle), "virtual:PATH"
    [tpm]
    tcti = "device:/dev/tpmrm0"     # which TPM `edge join --tpm` and `edge store tpm on` use; CAUSEWAY_TPM goes before
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from edge_client.errors import BadUse
from store.tpm import SYSTEM_TPM
from transport.messages import Padding

__all__ = [
    "BluetoothSettings", "Config", "EmbedderSettings", "IdentitySettings", "ModelSettings", "RelaySettings",
    "RouterSettings", "StoreSettings", "TpmSettings", "home_path",
]


_STORE: Final = "store.db"
_KEY: Final = "store.key"


class ModelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str | None = None
    context: Annotated[int, msgspec.Meta(ge=512, le=131_072)] = 4096
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    rest_after_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 900.0


class EmbedderSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str | None = None


class RelaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: str | None = None
    endpoints: Annotated[tuple[str, ...], msgspec.Meta(max_length=16)] = ()
    early_data: bool = True
    give_up_s: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 60.0
    padding: Padding = Padding.BUCKET
    discover: bool = False
    wss_trust: Literal["bundle", "webpki"] = "bundle"


_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class RouterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """At most one; without any the rules of router.policy decide."""

    share_relayed: _Share | None = None
    quality: _Share | None = None
    threshold: _Share | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.share_relayed, self.quality, self.threshold)) > 1:
            raise ValueError("share_relayed, quality and threshold exclude each other")

    def limit(self) -> float | None:
        """The threshold on router.policy.need() that is asked for."""
        if self.threshold is not None or (self.share_relayed is None and self.quality is None):
            return self.threshold
        from edge_client.router.difficulty import shipped

        if self.share_relayed is not None:
            return shipped().threshold_for_share(self.share_relayed)
        assert self.quality is not None
        return shipped().threshold_for_quality(self.quality)


class BluetoothSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    radio: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] = "system"


class IdentitySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    source: Literal["joined", "spire"] = "joined"
    socket: Annotated[str, msgspec.Meta(max_length=256)] | None = None

    def __post_init__(self) -> None:
        if (self.source == "spire") != (self.socket is not None):
            raise ValueError('source = "spire" and socket go together')


class TpmSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A name as tpm2-tss has them: device:PATH, swtpm:path=PATH, mssim:host=H,port=P, tabrmd:."""

    tcti: Annotated[str, msgspec.Meta(max_length=256, pattern=r"^(device|swtpm|mssim|tabrmd)(:[^\0]*)?\Z")] = SYSTEM_TPM


class StoreSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    lock_after_s: Annotated[float, msgspec.Meta(ge=0, le=31_536_000)] = 28_800.0


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: ModelSettings = ModelSettings()
    embedder: EmbedderSettings = EmbedderSettings()
    relay: RelaySettings = RelaySettings()
    router: RouterSettings = RouterSettings()
    bluetooth: BluetoothSettings = BluetoothSettings()
    store: StoreSettings = StoreSettings()
    identity: IdentitySettings = IdentitySettings()
    tpm: TpmSettings = TpmSettings()


@dataclass(frozen=True)
class Config:
    home: Path
    model: ModelSettings = field(default_factory=ModelSettings)
    embedder: EmbedderSettings = field(default_factory=EmbedderSettings)
    relay: RelaySettings = field(default_factory=RelaySettings)
    router: RouterSettings = field(default_factory=RouterSettings)
    bluetooth: BluetoothSettings = field(default_factory=BluetoothSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    identity: IdentitySettings = field(default_factory=IdentitySettings)
    tpm: TpmSettings = field(default_factory=TpmSettings)

    @property
    def store_path(self) -> Path:
        return self.home / _STORE

    @property
    def key_path(self) -> Path:
        return self.home / _KEY

    @property
    def token_path(self) -> Path:
        return self.home / "api-token"

    @property
    def traces_path(self) -> Path:
        return self.home / "traces.jsonl"

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ) -> "Config":
        """From CAUSEWAY_HOME (or ~/.causeway), its optional config.toml, and CAUSEWAY_TPM. Raises BadUse, naming the
        field.
        """
        home = home_path(environ)
        if os.path.isdir(home / "store.new"):  # noqa: PTH112 - a restore was cut short; a home may be no path at all
            from store.backups import finish  # with all of the store, which not every command needs

            finish(home / _STORE, home / _KEY)
        tpm = _tpm(environ)
        path = home / "config.toml"
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return cls(home, tpm=tpm or TpmSettings())
        except OSError as error:
            raise BadUse(
                f"cannot read {path}: {(error.strerror or '').lower()}", hint="CAUSEWAY_HOME names its folder"
            ) from None
        try:
            settings = msgspec.toml.decode(raw, type=_File)
        except (msgspec.DecodeError, ValueError) as error:  # a TOML syntax error is a ValueError
            raise BadUse(f"{path}: {error}", hint=_keys(str(error))) from None
        return cls(
            home, settings.model, settings.embedder, settings.relay, settings.router, settings.bluetooth,
            settings.store, settings.identity, tpm or settings.tpm,
        )


def _tpm(environ: Mapping[str, str]) -> TpmSettings | None:
    if not (given := environ.get("CAUSEWAY_TPM")):
        return None
    try:
        return msgspec.convert({"tcti": given}, TpmSettings)
    except msgspec.ValidationError:
        raise BadUse("CAUSEWAY_TPM names no TPM", hint="a name is as in device:/dev/tpmrm0") from None


def _keys(error: str) -> str:
    """What may stand in the table that msgspec's message ends with, as in "... - at `$.relay`"."""
    tables = {
        "model": ModelSettings, "embedder": EmbedderSettings, "relay": RelaySettings, "router": RouterSettings,
        "bluetooth": BluetoothSettings, "store": StoreSettings, "identity": IdentitySettings, "tpm": TpmSettings,
    }
    found = re.search(r"at `\$\.(\w+)", error)
    if found is None or found[1] not in tables:
        return "its tables are " + ", ".join(f"[{name}]" for name in tables)
    return f"[{found[1]}] may hold: " + ", ".join(tables[found[1]].__struct_fields__)


def home_path(environ: Mapping[str, str] = os.environ) -> Path:
    """CAUSEWAY_HOME, or ~/.causeway."""
    given = environ.get("CAUSEWAY_HOME")
    return Path(given).expanduser().absolute() if given else Path.home() / ".causeway"
