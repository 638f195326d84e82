"""Nonces that a server gives out and knows again."""

import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from transport.primitives import hmac_sha256, random_bytes, same_bytes

NONCE_S: Final = 60
USED_MAX: Final = 65_536


class Nonces:
    """One-use nonces of 60 s. Giving one out costs no memory, so nobody can push another's out; using one does."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._key = random_bytes(32)
        self._used: OrderedDict[bytes, float] = OrderedDict()

    def give(self) -> bytes:
        """32 bytes: time, random, and a MAC over both."""
        stem = struct.pack(">Q", int(self._clock())) + random_bytes(8)
        return stem + hmac_sha256(self._key, stem)[:16]

    def fresh(self, nonce: bytes) -> bool:
        """Whether it is ours, young and unused."""
        if len(nonce) != 32 or not same_bytes(nonce[16:], hmac_sha256(self._key, nonce[:16])[:16]):
            return False
        age = self._clock() - struct.unpack(">Q", nonce[:8])[0]
        return -1 <= age <= NONCE_S and nonce not in self._used

    def use(self, nonce: bytes) -> bool:
        """Marks a fresh nonce; False where too many are in use. To be called once a signature over it is verified."""
        now = self._clock()
        while self._used and next(iter(self._used.values())) < now - NONCE_S - 1:
            self._used.popitem(last=False)
        if len(self._used) >= USED_MAX:
            return False
        self._used[nonce] = now
        return True
