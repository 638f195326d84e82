"""Composition of the edge: the only place that builds the object graph. Everything is made when it is first needed."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from edge_client import login_keyring
from edge_client.answering import Assistant, Relay
from edge_client.config import Config
from edge_client.dialing import Dialer, nearby
from edge_client.draining import Drain
from edge_client.engine.llama import LlamaChat, LlamaEmbedder
from edge_client.engine.models import chat_model, embedder_file
from edge_client.errors import NoKeyring, NoPassphrase, NoStore, NotServing
from edge_client.gateway_client import GatewayClient
from edge_client.identity import NAMESPACE, Identities
from edge_client.key_agent import StoreState, key_from_serve, unlock_serve
from edge_client.offline import IfReachable, Later
from edge_client.outbox import Outbox
from edge_client.pairing import Pairing
from edge_client.passphrase import given, passphrase
from edge_client.posture import told
from edge_client.promises import ANSWERS, PROMISES, Promises
from edge_client.retrieval import Retrieval
from edge_client.while_open import AssistantWhileOpen, WhileOpen, store_is_locked
from store.database import STORE_SCHEMA, Database
from store.documents import Documents
from store.errors import StoreError, TpmError, WrongKey
from store.keys import DatabaseKey, Passphrase, create_key, held_for, unlock_by_tpm, unlock_held, unlock_key, ways_in
from store.queue import Queue
from store.search import Search
from store.settings import Settings
from store.tpm import Blob, Tpm
from transport import telemetry
from transport.identity.source import AgentSource
from transport.links.base import Endpoint

__all__ = ["App", "StoreUse", "key_without_asking", "unlocked_key"]

StoreUse = Literal["none", "if present", "create"]


class App:
    """One edge. An async context manager: leaving it ends sessions, closes the store and flushes traces."""

    def __init__(
        self, config: Config, use: StoreUse, database: Database | None, key: DatabaseKey | None,
        tracing: telemetry.Telemetry, tell: Callable[[str], None],
    ) -> None:
        """Use `open`. `key` is kept to be given to other processes."""
        self.config = config
        self.tracing = tracing
        self._tell = tell
        self._use, self._database, self._key = use, database, key
        self._changing = asyncio.Lock()  # locking and unlocking
        self._while_open = WhileOpen()
        self._drains = False
        self._quotes = config.model.path is None  # a person's own choice of model may do better than the small one
        self._chats: list[LlamaChat] = []
        self._unloading: list[asyncio.Task[None]] = []
        self._embedder: LlamaEmbedder | None = None
        self._client: GatewayClient | None = None
        self._dialer: Dialer | None = None
        self._identities: Identities | None = None
        self._drain: Drain | None = None
        self.pairing = Pairing(self._way, tell)

    @classmethod
    def open(
        cls, config: Config, *, store: StoreUse, ask: Callable[..., Passphrase] = passphrase,
        tell: Callable[[str], None] = lambda text: None, serving: bool = False,
    ) -> "App":
        """Opens the store as `store` says, asking for the passphrase if no `edge serve` holds its key. `tell` shows a
        person what the link does.

        `serving` is for `edge serve` itself: the key is kept, and where nobody can be asked the store stays locked.
        Raises StoreError, NoPassphrase or BadUse.
        """
        key = None
        try:
            if config.key_path.exists() and store != "none":
                key = (None if serving or given() else key_from_serve(config.home)) or unlocked_key(config, ask)
            elif store == "create":
                key = _new_key(config, ask)
        except (NoPassphrase, NoKeyring, TpmError) as error:
            if not serving:
                raise
            tell(f"the store is locked ({error}); `edge store unlock` opens it")
        database = None if key is None else Database.open(config.store_path, key, schema=STORE_SCHEMA)
        tracing = telemetry.start("edge", file=config.traces_path if config.home.is_dir() else None)
        return cls(config, store, database, key if serving else None, tracing, tell)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.pairing.end()
        await self.pairing.ended()
        async with self._changing:
            try:
                await self._hang_up()
            finally:
                if self._database is not None:
                    self._database.close()
                self.tracing.close()

    async def _hang_up(self) -> None:
        drain, client, dialer, identities = self._drain, self._client, self._dialer, self._identities
        self._drain = self._client = self._dialer = self._identities = None
        if drain is not None:
            drain.stop()
        if client is not None:
            await client.close()
        if drain is not None:
            await drain.ended()
        if dialer is not None:
            await dialer.close()
        if identities is not None:
            await identities.close()

    async def lock(self) -> bool:
        """Forgets the key: ends sessions and answers, closes the store. False if it was not open.

        Takes as long as an orderly end of the sessions, some seconds. Until `unlock`, what needs the store raises
        StoreLocked.
        """
        async with self._changing:
            database, self._database, self._key = self._database, None, None
            if database is None:
                return False
            ending, self._while_open = self._while_open, WhileOpen()
            ending.locking()
            try:
                await self._hang_up()
                await ending.end()
            finally:
                await asyncio.to_thread(database.close, store_is_locked)
                # Their contexts hold what was read to them. Not awaited: an answer without documents may go on.
                self._unloading = [asyncio.ensure_future(chat.unload()) for chat in self._chats]
        self._tell("the store is locked")
        return True

    async def unlock(self, key: DatabaseKey) -> None:
        """Opens the store that was locked; does nothing if it is open. Raises NoStore, and as Database.open."""
        async with self._changing:
            if self.store == "open":
                return
            if self.store == "none":
                raise NoStore
            self._database = await asyncio.to_thread(Database.open, self.config.store_path, key, schema=STORE_SCHEMA)
            self._key = key
            if self._drains:
                self.drain()
        self._tell("the store is open")

    @property
    def store(self) -> StoreState:
        if self._database is not None:
            return "open"
        return "locked" if self._use != "none" and self.config.key_path.exists() else "none"

    @property
    def key(self) -> DatabaseKey | None:
        """What `edge serve` gives to commands beside it; None while the store is locked."""
        return self._key

    @property
    def has_store(self) -> bool:
        return self.store != "none"

    @property
    def database(self) -> Database:
        """Raises NoStore where there is none yet, StoreLocked."""
        if self._database is None:
            raise NoStore if self.store == "none" else store_is_locked()
        return self._database

    @property
    def documents(self) -> Documents:
        return Documents(self.database)

    @property
    def settings(self) -> Settings:
        """The identity's settings; `join` and the gateway client keep theirs here."""
        return Settings(self.database, NAMESPACE)

    @property
    def identities(self) -> Identities:
        """Of this device, as it has joined or as its SPIFFE agent says. Raises NoStore where there is none yet."""
        if self._identities is None:
            given = self.config.identity
            source = None if given.socket is None else AgentSource(given.socket, "edge", report=self._tell)
            self._identities = Identities(self.settings, source, Tpm(self.config.tpm.tcti))
        return self._identities

    @property
    def outbox(self) -> Outbox:
        return Outbox(Queue(self.database, "outbox"))

    @property
    def promises(self) -> Promises:
        return Promises(Settings(self.database, PROMISES), Settings(self.database, ANSWERS))

    def drain(self) -> None:
        """Sends what is queued whenever a gateway can be reached, while the store is open; not without one."""
        self._drains = True
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
        """The local model: `path`, or what the configuration says; one of `name` besides."""
        if path is not None and name == "local":
            self._quotes = False
        locate = partial(chat_model, self.config) if path is None else lambda: path
        settings = self.config.model
        self._chats.append(LlamaChat(
            locate, name=name, context=settings.context, threads=settings.threads,
            rest_after_s=settings.rest_after_s or None,
        ))
        return self._chats[-1]

    def retrieval(self) -> Retrieval:
        return Retrieval(Search(self.database), self.embedder())

    @property
    def dial(self) -> Dialer:
        """Opens links to hops and gateways. Raises NoStore where there is none yet."""
        if self._dialer is None:
            config = self.config
            self._dialer = Dialer(
                self.settings, radio=config.bluetooth.radio, wss_trust=config.relay.wss_trust, tell=self._tell,
                identities=self.identities,
            )
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
                find=self._find, worked=self.dial.worked, posture=told(self.config.home),
                identities=self.identities,
            )
        return self._client

    async def _find(self) -> Sequence[Endpoint]:
        return *(await nearby() if self.config.relay.discover else ()), *self.pairing.endpoints

    async def relay(self) -> Relay | None:
        """The way to the gateway, or None before joining. Raises StoreLocked."""
        return await self._way()

    async def _way(self) -> GatewayClient | None:
        if not self.has_store:
            return None
        # With an agent that is away for the moment there is a way all the same: what is asked waits in the outbox.
        if self.config.identity.socket is None and await self.identities.load() is None:
            return None
        return self.client

    async def assistant(
        self, chat: LlamaChat | None = None, *, relay: bool = True, later: bool = False
    ) -> Assistant:
        """Answers from the documents if there are any, and by the gateway if the device has joined.

        With `later` nothing is sent: what would be goes into the outbox, and Queued is raised.
        """
        while_open = self._while_open
        way = await self.relay() if relay else None
        client = way if isinstance(way, GatewayClient) else None
        if client is not None and later:
            way = Later(client, self.promises, int(time.time()))
        has_documents = self.has_store and (await self.documents.count())[1] > 0
        assistant = AssistantWhileOpen(
            chat=chat or self.chat(),
            retrieval=self.retrieval() if has_documents else None,
            relay=way,
            if_reachable=IfReachable(self.client) if client is not None and not later else None,
            tracing=self.tracing,
            relay_model=self.config.relay.model,
            threshold=self.config.router.limit(),
            quotes=self._quotes,
        )
        assistant.while_open = while_open
        return assistant


def _new_key(config: Config, ask: Callable[..., Passphrase]) -> DatabaseKey:
    secret = ask(new=True)
    config.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = create_key(config.key_path, secret)
    with contextlib.suppress(NotServing, StoreError):  # one that runs already, and had no store
        unlock_serve(config.home, key)
    return key


def unlocked_key(config: Config, ask: Callable[..., Passphrase]) -> DatabaseKey:
    """By the TPM or the login keyring if that was switched on and no passphrase is given; else by the passphrase, which
    opens it in any case, unless that was switched off.
    """
    path, ways, failure = config.key_path, list[str](), None
    if not given():
        with contextlib.suppress(StoreError):  # a damaged key file is told by who is to open it
            ways = ways_in(path)
    try:
        if (key := key_without_asking(config, ways)) is not None:
            return key
    except (NoKeyring, WrongKey, TpmError) as error:
        if "passphrase" not in ways:
            raise
        failure = error
    try:
        return unlock_key(path, ask(new=False))
    except NoPassphrase as error:
        raise failure or error from None


def key_without_asking(config: Config, ways: Collection[str]) -> DatabaseKey | None:
    """By the TPM or the login keyring, whichever of `ways` opens the store; None if they are none of these.

    Raises why the first of them does not: NoKeyring, WrongKey, TpmError.
    """
    failure: NoKeyring | WrongKey | TpmError | None = None
    for way, opened in (("tpm", _by_tpm), ("held", _by_keyring)):
        if way in ways:
            try:
                return opened(config)
            except (NoKeyring, WrongKey, TpmError) as error:
                failure = failure or error
    if failure is not None:
        raise failure
    return None


def _by_tpm(config: Config) -> DatabaseKey:
    tpm = Tpm(config.tpm.tcti)
    return unlock_by_tpm(config.key_path, lambda sealed: tpm.unseal(Blob.decode(sealed)))


def _by_keyring(config: Config) -> DatabaseKey:
    store_id = held_for(config.key_path)
    if store_id is None:
        raise NoKeyring("the login keyring does not unlock this store", hint="`edge store keyring on`")
    return unlock_held(config.key_path, login_keyring.get(store_id))
