"""What Causeway is compared with: `ssl`, `noiseprotocol`, `sqlite-vec`. And what it is attacked with.

`noiseprotocol`, `sqlite-vec` and scikit-learn are no dependencies of the project: they live in `.venv-peers`
(benchmarks/peers.lock, hashes, no index), installed when first needed, and use the `cryptography`, the `numpy` and the
SQLCipher of the project's own environment, so that all call the same primitives.
"""

import contextlib
import hashlib
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "benchmarks" / "peers.lock"
FOLDER = ROOT / ".venv-peers"


class TlsPair:
    """A client and a server joined by memory."""

    def __init__(
        self, client: ssl.SSLContext, server: ssl.SSLContext, session: ssl.SSLSession | None = None
    ) -> None:
        self._to_client, self._from_client, self._to_server, self._from_server = (ssl.MemoryBIO() for _ in range(4))
        self.client = client.wrap_bio(self._to_client, self._from_client, session=session)
        self.server = server.wrap_bio(self._to_server, self._from_server, server_side=True)
        self.bytes = 0  # of the handshake, both ways

    def shake_hands(self) -> "TlsPair":
        done = [False, False]
        ways = (
            (self.client, self._from_client, self._to_server), (self.server, self._from_server, self._to_client)
        )
        while not all(done):
            for at, (side, out, peer) in enumerate(ways):
                if not done[at]:
                    try:
                        side.do_handshake()
                        done[at] = True
                    except ssl.SSLWantReadError:
                        pass
                    data = out.read()
                    self.bytes += len(data)
                    peer.write(data)
        return self

    def ticket(self) -> ssl.SSLSession:
        """What the server handed out behind the handshake."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.client.read(1)
        session = self.client.session
        if session is None:
            raise RuntimeError("the TLS server gave no ticket")
        return session

    def carry(self, data: bytes) -> bytes:
        """Sealed by the client, opened by the server."""
        self.client.write(data)
        self._to_server.write(self._from_client.read())
        return self.server.read(len(data))


def noiseprotocol() -> tuple[Any, str]:
    """(the package's `noise.connection`, what to call it), or (None, why not). Installs it when it is not there."""
    name = "noiseprotocol"
    try:
        _install()
        sys.path.append(str(FOLDER))
        from noise import connection  # type: ignore[import-not-found]
    except (OSError, subprocess.SubprocessError, ImportError) as error:
        return None, f"{name} (not measured: {type(error).__name__} while installing benchmarks/peers.lock)"
    return connection, name


def scikit_learn() -> str:
    """Makes `sklearn` importable and returns its version. Raises RuntimeError that says why it cannot."""
    try:
        _install()
        if str(FOLDER) not in sys.path:
            sys.path.append(str(FOLDER))
        import sklearn  # type: ignore[import-not-found]
    except (OSError, subprocess.SubprocessError, ImportError) as error:
        raise RuntimeError(
            f"scikit-learn of benchmarks/peers.lock cannot be installed ({type(error).__name__})"
        ) from error
    return str(sklearn.__version__)


def sqlite_vec() -> tuple[str | None, str]:
    """(where its loadable extension is, what to call it), or (None, why not). Installs it when it is not there."""
    name = "sqlite-vec"
    try:
        _install()
        if str(FOLDER) not in sys.path:
            sys.path.append(str(FOLDER))
        import sqlite_vec  # type: ignore[import-not-found]
    except (OSError, subprocess.SubprocessError, ImportError) as error:
        return None, f"{name} (not measured: {type(error).__name__} while installing benchmarks/peers.lock)"
    return str(sqlite_vec.loadable_path()), f"{name} {sqlite_vec.__version__}"


def _install() -> None:
    mark = FOLDER / hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if mark.exists():
        return
    with tempfile.TemporaryDirectory(dir=ROOT, prefix=".venv-peers-") as scratch:
        folder = Path(scratch) / "peers"
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps",
             "--require-hashes", "--target", str(folder), "-r", str(LOCK)],
            check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=300,
        )
        (folder / mark.name).touch()
        shutil.rmtree(FOLDER, ignore_errors=True)
        folder.replace(FOLDER)


def noise_handshake(connection: Any) -> Callable[[], tuple[Any, Any]]:
    """XX over Curve25519, the package's usual choice: both sides hold static keys, and nobody vouches for them."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    keys = [X25519PrivateKey.generate().private_bytes_raw() for _ in range(2)]

    def run() -> tuple[Any, Any]:
        sides = [connection.NoiseConnection.from_name(b"Noise_XX_25519_AESGCM_SHA256") for _ in range(2)]
        sides[0].set_as_initiator()
        sides[1].set_as_responder()
        for side, key in zip(sides, keys, strict=True):
            side.set_keypair_from_private_bytes(connection.Keypair.STATIC, key)
            side.start_handshake()
        edge, gateway = sides
        gateway.read_message(edge.write_message())
        edge.read_message(gateway.write_message())
        gateway.read_message(edge.write_message())
        return edge, gateway

    return run
