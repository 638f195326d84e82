"""Composition of the edge: the only place that builds the object graph. Everything is made when it is first needed."""

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from edge_client import login_keyring
from edge_client.answering import Assistant, Relay
from edge_client.config import Config
from edge_client.dialing import Dialer, nearby, nobody
from edge_client.draining import Drain
from edge_client.engine.llama import LlamaChat, LlamaEmbedder
from edge_client.engine.models import chat_model, embedder_file
from edge_client.errors import NoKeyring, NoPassphrase, NoStore
from edge_client.gateway_client import GatewayClient
from edge_client.identity import NAMESPACE, DeviceIdentity
from edge_client.offline import IfReachable, Later
from edge_client.outbox import Outbox
from edge_client.passphrase import given, passphrase
from edge_client.promises import ANSWERS, PROMISES, Promises
from edge_client.retrieval import Retrieval
from store.database import STORE_SCHEMA, Database
from store.documents import Documents
from store.errors import StoreError, WrongKey
from store.keys import DatabaseKey, Passphrase, create_key, held_for, unlock_held, unlock_key
from store.queue import Queue
from store.search import Search
from store.settings import Settings
from transport import telemetry
from transport.links.base import Endpoint

__all__ = ["App", "StoreUse", "open_store"]

StoreUse = Literal["none", "if present", "create"]


class App:
    """One edge. An async context manager: leaving it ends sessions, closes the store and flushes traces."""

    def __init__(
        self, config: Config, database: Database | None, tracing: telemetry.Telemetry, tell: Callable[[str], None]
    ) -> None:
        """Use `open`."""
        self.config = config
        self.tracing = tracing
        self._tell = tell
        self._database = database
        self._embedder: LlamaEmbedder | None = None
        self._client: GatewayClient | None = None
        self._dialer: Dialer | None = None
        self._drain: Drain | None = None

    @classmethod
    def open(
        cls, config: Config, *, store: StoreUse, ask: Callable[..., Passphrase] = passphrase,
        tell: Callable[[str], None] = lambda text: None,
    ) -> "App":
        """Opens the store as `store` says, asking for the passphrase. `tell` shows a person what the link does.

        Raises StoreError, NoPassphrase or BadUse.
        """
        database = open_store(config, store, ask)
        home_exists = config.home.is_dir()
        return cls(config, database, telemetry.start("edge", file=config.traces_path if home_exists else None), tell)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._drain is not None:
                self._drain.stop()
            if self._client is not None:
                await self._client.close()
            if self._drain is not None:
                await self._drain.ended()
            if self._dialer is not None:
                await self._dialer.close()
        finally:
            if self._database is not None:
                self._database.close()
            self.tracing.close()

    @property
    def has_store(self) -> bool:
        return self._database is not None

    @property
    def database(self) -> Database:
        """Raises NoStore where there is none yet."""
        if self._database is None:
            raise NoStore
        return self._database

    @property
    def documents(self) -> Documents:
        return Documents(self.database)

    @property
    def settings(self) -> Settings:
        """The identity's settings; `join` and the gateway client keep theirs here."""
        return Settings(self.database, NAMESPACE)

    @property
    def outbox(self) -> Outbox:
        return Outbox(Queue(self.database, "outbox"))

    @property
    def promises(self) -> Promises:
        return Promises(Settings(self.database, PROMISES), Settings(self.database, ANSWERS))

    def drain(self) -> None:
        """Sends what is queued whenever a gateway can be reached, until this edge closes; not without a store."""
        if self._database is not None and self._drain is None:
            self._drain = Drain(self.client, self.promises, tell=self._tell)
            self._drain.start()

    def embedder(self, progress: Callable[[int, int], None] = lambda done, total: None) -> LlamaEmbedder:
        """Converts the weights at first use, telling `progress`. Raises ModelMissing or ModelUnusable."""
        if self._embedder is None:
            file = embedder_file(self.config, progress)
            self._embedder = LlamaEmbedder(file.path, model_id=file.model_id)
        return self._embedder

    def chat(self, path: Path | None = None, *, name: str = "local") -> LlamaChat:
        """The local model: `path`, or what the configuration says."""
        locate = partial(chat_model, self.config) if path is None else lambda: path
        settings = self.config.model
        return LlamaChat(
            locate, name=name, context=settings.context, threads=settings.threads,
            rest_after_s=settings.rest_after_s or None,
        )

    def retrieval(self) -> Retrieval:
        return Retrieval(Search(self.database), self.embedder())

    @property
    def dial(self) -> Dialer:
        """Opens links to hops and gateways. Raises NoStore where there is none yet."""
        if self._dialer is None:
            config = self.config
            self._dialer = Dialer(self.settings, radio=config.bluetooth.radio, wss_trust=config.relay.wss_trust)
        return self._dialer

    @property
    def client(self) -> GatewayClient:
        """The way to the gateway and the outbox, also before joining. Raises NoStore where there is none yet."""
        if self._client is None:
            relay = self.config.relay
            endpoints = [Endpoint.parse(text) for text in relay.endpoints]
            self._client = GatewayClient(
                self.settings, self.outbox, endpoints, self.tracing, self.dial, give_up_s=relay.give_up_s,
                tell=self._tell, early_data=relay.early_data, padding=relay.padding,
                find=nearby if relay.discover else nobody, worked=self.dial.worked,
            )
        return self._client

    async def relay(self) -> Relay | None:
        """The way to the gateway, or None before joining."""
        if self._database is None or await DeviceIdentity.load(self.settings) is None:
            return None
        return self.client

    async def assistant(
        self, chat: LlamaChat | None = None, *, relay: bool = True, later: bool = False
    ) -> Assistant:
        """Answers from the documents if there are any, and by the gateway if the device has joined.

        With `later` nothing is sent: what would be goes into the outbox, and Queued is raised.
        """
        way = await self.relay() if relay else None
        client = way if isinstance(way, GatewayClient) else None
        if client is not None and later:
            way = Later(client, self.promises, int(time.time()))
        has_documents = self._database is not None and (await self.documents.count())[1] > 0
        return Assistant(
            chat=chat or self.chat(),
            retrieval=self.retrieval() if has_documents else None,
            relay=way,
            if_reachable=IfReachable(self.client) if client is not None and not later else None,
            tracing=self.tracing,
            relay_model=self.config.relay.model,
            threshold=self.config.router.limit(),
        )


def open_store(config: Config, use: StoreUse, ask: Callable[..., Passphrase]) -> Database | None:
    """The store, created on "create" if there is none; None if there is none or none is wanted."""
    if use == "none" or (use == "if present" and not config.key_path.exists()):
        return None
    if config.key_path.exists():
        key = _unlocked(config.key_path, ask)
    else:
        secret = ask(new=True)
        config.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = create_key(config.key_path, secret)
    return Database.open(config.store_path, key, schema=STORE_SCHEMA)


def _unlocked(path: Path, ask: Callable[..., Passphrase]) -> DatabaseKey:
    """By the login keyring if that was switched on and no passphrase is given; the passphrase opens it in any case."""
    store_id = None
    if not given():
        with contextlib.suppress(StoreError):  # a damaged key file is told by who is to open it
            store_id = held_for(path)
    if store_id is None:
        return unlock_key(path, ask(new=False))
    try:
        return unlock_held(path, login_keyring.get(store_id))
    except (NoKeyring, WrongKey) as error:
        try:
            return unlock_key(path, ask(new=False))
        except NoPassphrase:
            raise error from None
