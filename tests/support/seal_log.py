"""Watches AES-GCM: fails when one key seals twice under one nonce."""

from collections.abc import Callable
from typing import Any
from unittest import mock

from transport.primitives import AesGcm

REKEY_NONCE = bytes(4) + b"\xff" * 8  # Noise section 11.3: both sides seal the same zeros under it


class SealLog:
    """While `watching`, remembers (key, nonce) of everything that is sealed in this process; `sealed` counts it."""

    def __init__(self) -> None:
        self._seen: dict[tuple[bytes, bytes], tuple[bytes, bytes]] = {}
        self.repeats = 0
        original = AesGcm.__init__

        def watched(aead: AesGcm, key: bytes) -> None:
            original(aead, key)
            aead.seal = self._watch(key, aead.seal)

        self._patch = mock.patch.object(AesGcm, "__init__", watched)

    @property
    def sealed(self) -> int:
        return len(self._seen)

    def start(self) -> None:
        self._patch.start()

    def stop(self) -> None:
        self._patch.stop()

    def _watch(self, key: bytes, seal: Callable[..., bytes]) -> Callable[..., bytes]:
        def sealing(nonce: bytes, plaintext: bytes, associated: bytes) -> bytes:
            now: Any = (plaintext, associated)
            before = self._seen.setdefault((key, nonce), now)
            if before is not now and not (nonce == REKEY_NONCE and before == now == (bytes(32), b"")):
                self.repeats += 1
            return seal(nonce, plaintext, associated)

        return sealing
