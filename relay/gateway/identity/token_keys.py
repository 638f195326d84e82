"""Keys that sign tokens, of which there are always two: one that signs, and one that is published and will sign next.

A key signs for a day (30 days where another holds it), so its successor has been published for as long when it takes
over, and whoever keeps our key set for less knows it. Once a key has ended it stays published until what it signed last
has run out. By hand the same happens at once; keys that may be in other hands are forgotten, and with them all that
they have signed.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

from relay.gateway.audit.log import AuditLog
from relay.gateway.errors import KeysUnavailable
from relay.gateway.identity.custody import SOFTWARE, Custody, aside
from relay.gateway.identity.jose import ALGORITHM, TokenRefused, Unverified, jwk_of, signed, thumbprint
from store.database import Connection, Database
from transport.errors import LocalMisuse
from transport.identity.verify import LEEWAY_S
from transport.primitives import Signer

SIGNS_S: Final = 86_400
HELD_SIGNS_S: Final = 30 * SIGNS_S  # in a token or a service each new key has its price
ACCESS: Final = "access"
JWT_SVID: Final = "jwt-svid"
ACCESS_S: Final = 600  # the longest that an access token is good for
_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class TokenKey:
    """Unix seconds: `begins` 0 if it has not signed yet, `ended` 0 if it may sign still."""

    kid: str
    signer: Signer
    kept: bytes
    created: int
    begins: int = 0
    ended: int = 0


class TokenKeys:
    """Owns the rows of one purpose in 0005_token_keys.sql. Await `load` before anything else."""

    def __init__(
        self, database: Database, purpose: str, *, longest_s: int, custody: Custody = SOFTWARE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`longest_s`: no token signed here is good for longer. `custody` holds the private keys."""
        self._custody = custody
        self.purpose = purpose
        self._database, self._longest_s, self._clock = database, longest_s, clock
        self._keys: dict[str, TokenKey] = {}
        self._turning = asyncio.Lock()
        self.changed: list[Callable[[], None]] = []  # called whenever other keys are published than before

    async def load(self) -> None:
        """Reads the keys, and makes those that are missing. Raises StoreError, KeysUnavailable."""

        def work(connection: Connection) -> list[tuple[Any, ...]]:
            return connection.execute(
                "SELECT kid, private, created, begins, ended FROM token_keys WHERE purpose = ? ORDER BY created",
                (self.purpose,),
            ).fetchall()

        self._keys = {}
        for kid, kept, *times in await self._database.run(work, read_only=True):
            try:
                signer = self._custody.open(kept)
            except KeysUnavailable as error:
                if error.again:
                    raise
                _log.error("tokens that were signed by the key %s are over: %s", kid, error)
            else:
                self._keys[kid] = TokenKey(kid, signer, kept, *times)
        await self.tend()

    async def tend(self) -> None:
        """Takes the next key if it is time, and forgets those whose tokens have all run out.

        Raises StoreError, KeysUnavailable.
        """
        async with self._turning:
            now = int(self._clock())
            if self._due(now):
                await self._turn(now)
            elif gone := [one.kid for one in self._keys.values() if not self._published(one, now)]:
                await self._write({kid: key for kid, key in self._keys.items() if kid not in gone})

    async def rotate(self, *, compromised: bool = False) -> str:
        """Takes the next key now; the id of the one that signs from here on.

        `compromised`: whoever has the old keys can sign nothing more that is believed, and what they have signed is
        over; the next one is another, too, since it was kept beside them. Raises StoreError.
        """
        async with self._turning:
            await self._turn(int(self._clock()), forget=compromised)
            current = self._current()
            assert current is not None
            return current.kid

    async def sign(self, claims: Mapping[str, Any], typ: str) -> str:
        """A token of that type (its header's `typ`), by the key whose turn it is. `claims` have `exp`, unix seconds.

        Raises LocalMisuse for one that would outlive its key's publication, StoreError, KeysUnavailable.
        """
        now = int(self._clock())
        if not now <= claims["exp"] <= now + self._longest_s:
            raise LocalMisuse("a token ends within the time that its key is published for")
        if self._due(now):
            try:
                await self.tend()
            except KeysUnavailable as error:
                if self._current() is None:
                    raise
                _log.error("there is no new key for %s tokens yet: %s", self.purpose, error)
        current = self._current()
        assert current is not None
        signer, header = current.signer, {"typ": typ, "kid": current.kid}
        return await aside(signer, lambda: signed(signer, header, claims))

    def verify(self, text: str, typ: str, claims: type[T]) -> T:
        """What a token says that was signed here. Its times, and for whom it is, are the caller's to compare.

        Raises TokenRefused: "size", "form", "duplicate member", "algorithm", "header", "type", "key", "signature",
        "claims".
        """
        unverified = Unverified(text).of(typ)
        if not self.believes(unverified.kid):
            raise TokenRefused("key")
        return unverified.verified(self._keys[unverified.kid].signer.public, claims)

    def believes(self, kid: str) -> bool:
        """Whether what that key has signed is good."""
        key = self._keys.get(kid)
        return key is not None and bool(key.begins) and self._published(key, self._clock())

    def jwks(self) -> list[dict[str, str]]:
        """The public keys, each as a JWK (RFC 7517), the one that is to sign next among them."""
        now = self._clock()
        return [
            {**jwk_of(key.signer.public), "kid": key.kid, "alg": ALGORITHM, "use": "sig"}
            for key in self._keys.values() if self._published(key, now)
        ]

    @property
    def newest(self) -> int:
        """When the latest of them was made, unix seconds; 0 if there is none."""
        return max((key.created for key in self._keys.values()), default=0)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _current(self) -> TokenKey | None:
        return next((key for key in self._keys.values() if key.begins and not key.ended), None)

    def _next(self) -> TokenKey | None:
        return next((key for key in self._keys.values() if not key.begins), None)

    def _due(self, now: int) -> bool:
        """Also where the clock was far ahead when a key began: it would sign for too long."""
        current = self._current()
        if current is None or self._next() is None:
            return True
        signs_s = HELD_SIGNS_S if current.signer.slow else SIGNS_S
        return not -LEEWAY_S <= now - current.begins < signs_s

    def _published(self, key: TokenKey, now: float) -> bool:
        return not key.ended or now < key.ended + self._longest_s + LEEWAY_S

    async def _turn(self, now: int, *, forget: bool = False) -> None:
        kept = {} if forget else {kid: key for kid, key in self._keys.items() if self._published(key, now)}
        current, coming = (None, None) if forget else (self._current(), self._next())
        if current is not None:
            kept[current.kid] = replace(current, ended=now)
        coming = coming or await self._made(now)
        kept[coming.kid] = replace(coming, begins=now)
        following = await self._made(now)
        kept[following.kid] = following
        await self._write(kept)
        _log.info("%s tokens are signed by the key %s from now on", self.purpose, coming.kid)

    async def _write(self, keys: dict[str, TokenKey]) -> None:
        """On stable storage first, so that no token is given out whose key a restart has forgotten."""
        rows = [(key.kid, self.purpose, key.kept, key.created, key.begins, key.ended) for key in keys.values()]
        gone = [key for kid, key in self._keys.items() if kid not in keys]

        def work(connection: Connection) -> None:
            connection.execute("DELETE FROM token_keys WHERE purpose = ?", (self.purpose,))
            connection.executemany("INSERT INTO token_keys VALUES (?, ?, ?, ?, ?, ?)", rows)

        await self._database.run(work)
        self._keys = keys
        for tell in self.changed:
            tell()
        for key in gone:
            try:
                await aside(key.signer, partial(self._custody.forget, key.kept))
            except KeysUnavailable as error:  # a person may delete it; nothing is signed by it
                _log.warning("the key %s is not used any more and could not be deleted: %s", key.kid, error)

    async def _made(self, now: int) -> TokenKey:
        signer, kept = await asyncio.to_thread(self._custody.make, f"token-{self.purpose}")
        return TokenKey(thumbprint(signer.public), signer, kept, now)


class Rotation:
    """The administrator's operation `rotate_tokens`: all purposes at once, and on record before."""

    def __init__(self, keys: Sequence[TokenKeys], audit: AuditLog) -> None:
        self._keys, self._audit = keys, audit

    async def __call__(self, compromised: bool = False) -> dict[str, Any]:
        """The ids of the keys that sign from now on, by purpose. Raises AuditUnavailable, StoreError."""
        await self._audit.append("token_keys.rotation", compromised=compromised)
        return {"keys": {one.purpose: await one.rotate(compromised=compromised) for one in self._keys}}
