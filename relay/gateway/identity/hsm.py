"""Keys in a token behind PKCS#11 (2.40): made there, marked as sensitive and not extractable, found by their label.

One session, and one thread that uses it, which does nothing else: modules leave errors behind in what OpenSSL keeps for
each thread, and Python's TLS would take them for its own. If the session was lost, the token taken away or logged out
by somebody else, the next use logs in anew, once; after a PIN that the token refused never again: it counts them.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import pkcs11
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, ObjectClass
from pkcs11.util.ec import encode_ec_public_key, encode_named_curve_parameters

from relay.gateway.errors import KeysUnavailable
from transport.errors import ProtocolViolation
from transport.primitives import VerifyKey, random_bytes

Result = TypeVar("Result")

_NONCE_LEN: Final = 12
_HIDDEN: Final = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.PRIVATE: True}
_WRONG_PIN: Final = (
    pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange, pkcs11.PinLocked, pkcs11.PinExpired,
)
# A token that somebody logged out shows no private keys: that one is not there may mean no more than this.
_LOST: Final = (
    pkcs11.SessionHandleInvalid, pkcs11.SessionClosed, pkcs11.UserNotLoggedIn, pkcs11.KeyHandleInvalid,
    pkcs11.ObjectHandleInvalid, pkcs11.DeviceRemoved, pkcs11.DeviceError, pkcs11.TokenNotPresent, pkcs11.NoSuchKey,
    pkcs11.NoSuchToken, pkcs11.GeneralError, pkcs11.FunctionFailed,
)


class Hsm:
    """A Holder: one token, by its label."""

    source = "pkcs11"

    def __init__(self, module: Path, token: str, pin: Callable[[], str]) -> None:
        """Nothing is opened before the first use. `pin` raises ConfigError."""
        self._module, self._token, self._pin = module, token, pin
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pkcs11")
        self._session: pkcs11.Session | None = None
        self._found: dict[tuple[str, ObjectClass], Any] = {}
        self._refused = False

    def make(self, name: str) -> VerifyKey:
        def work(session: pkcs11.Session) -> bytes:
            curve = session.create_domain_parameters(
                KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}, local=True
            )
            public, _ = curve.generate_keypair(
                store=True, label=name, id=random_bytes(16),
                private_template={**_HIDDEN, Attribute.SIGN: True, Attribute.DERIVE: False},
            )
            return encode_ec_public_key(public)

        try:
            return VerifyKey.from_spki(self._use(work))
        except ProtocolViolation:
            raise KeysUnavailable("the token made a key that is none", hint="does it know P-256?") from None

    def find(self, name: str) -> None:
        self._use(lambda session: self._key(session, name, ObjectClass.PRIVATE_KEY))

    def sign(self, name: str, message: bytes) -> bytes:
        digest = hashlib.sha256(message).digest()

        def work(session: pkcs11.Session) -> bytes:
            key = self._key(session, name, ObjectClass.PRIVATE_KEY)
            return bytes(key.sign(digest, mechanism=Mechanism.ECDSA))

        return self._use(work)

    def destroy(self, name: str) -> None:
        def work(session: pkcs11.Session) -> None:
            _check(session)
            for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
                self._found.pop((name, kind), None)
                for found in list(session.get_objects({Attribute.CLASS: kind, Attribute.LABEL: name})):
                    found.destroy()

        self._use(work)

    def make_wrapping(self, name: str) -> None:
        self._use(lambda session: session.generate_key(
            KeyType.AES, 256, store=True, label=name, id=random_bytes(16), template=dict(_HIDDEN)
        ))

    def wrap(self, name: str, secret: bytes, context: str) -> bytes:
        nonce = random_bytes(_NONCE_LEN)

        def work(session: pkcs11.Session) -> bytes:
            key = self._key(session, name, ObjectClass.SECRET_KEY)
            return bytes(key.encrypt(secret, mechanism=Mechanism.AES_GCM, mechanism_param=_gcm(nonce, context)))

        return nonce + self._use(work)

    def unwrap(self, name: str, wrapped: bytes, context: str) -> bytes:
        nonce, sealed = wrapped[:_NONCE_LEN], wrapped[_NONCE_LEN:]

        def work(session: pkcs11.Session) -> bytes:
            key = self._key(session, name, ObjectClass.SECRET_KEY)
            return bytes(key.decrypt(sealed, mechanism=Mechanism.AES_GCM, mechanism_param=_gcm(nonce, context)))

        return self._use(work)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _use(self, work: Callable[[pkcs11.Session], Result]) -> Result:
        try:
            return self._thread.submit(self._try, work).result()
        except pkcs11.PKCS11Error as error:
            raise self._explained(error) from None

    def _try(self, work: Callable[[pkcs11.Session], Result]) -> Result:
        try:
            return work(self._opened())
        except _LOST:
            self._forget()
            return work(self._opened())

    def _key(self, session: pkcs11.Session, name: str, kind: ObjectClass) -> Any:  # what it can do is mixed in later
        if (name, kind) not in self._found:
            _check(session)
            try:
                self._found[name, kind] = session.get_key(object_class=kind, label=name)
            except pkcs11.NoSuchKey:
                raise pkcs11.NoSuchKey(name) from None
        return self._found[name, kind]

    def _forget(self) -> None:
        self._session = None
        self._found.clear()

    def _opened(self) -> pkcs11.Session:
        if self._session is None:
            if self._refused:
                raise pkcs11.PinIncorrect
            library = pkcs11.lib(str(self._module))
            tokens = list(library.get_tokens(token_label=self._token))
            if not tokens:  # it may have been put in since the module looked
                library.reinitialize()
                tokens = list(library.get_tokens(token_label=self._token))
            if len(tokens) != 1:
                raise pkcs11.MultipleTokensReturned if tokens else pkcs11.NoSuchToken
            try:
                self._session = tokens[0].open(rw=True, user_pin=self._pin())
            except pkcs11.UserAlreadyLoggedIn:  # in this process; that counts for all of its sessions
                self._session = tokens[0].open(rw=True)
            except _WRONG_PIN:
                self._refused = True
                raise
        return self._session

    def _explained(self, error: pkcs11.PKCS11Error) -> KeysUnavailable:
        if isinstance(error, pkcs11.PinLocked):
            return KeysUnavailable(f"the token {self._token} is locked after wrong PINs",
                                   hint="its security officer unlocks it")
        if isinstance(error, _WRONG_PIN):
            return KeysUnavailable(f"the token {self._token} refuses the PIN",
                                   hint="correct keys.pin_file and start anew; it is not tried twice, tokens lock")
        if isinstance(error, pkcs11.NoSuchToken):
            return KeysUnavailable(f"there is no token with the label {self._token}",
                                   hint="is it there? keys.token names it; `pkcs11-tool -L --module ...` lists tokens")
        if isinstance(error, pkcs11.MultipleTokensReturned):
            return KeysUnavailable(f"several tokens have the label {self._token}", hint="give one another label")
        if isinstance(error, pkcs11.NoSuchKey):
            return KeysUnavailable(f"the token {self._token} has no key {error}", hint="was it deleted, or is this "
                                   "another token with the same label?")
        if type(error) is pkcs11.PKCS11Error:  # the one that loading gives
            return KeysUnavailable(f"{self._module} is not a PKCS#11 module that can be loaded",
                                   hint="keys.module names it, as in /usr/lib/softhsm/libsofthsm2.so")
        name = type(error).__name__
        hint = "does the module find its configuration, as by SOFTHSM2_CONF? its own log has more"
        return KeysUnavailable(f"the token {self._token} failed: {name}", hint=hint, again=True)


def _check(session: pkcs11.Session) -> None:
    """Whether it is alive: a search on one that is not leaves a traceback on standard error, besides what it raises."""
    session.generate_random(64)


def _gcm(nonce: bytes, context: str) -> GCMParams:
    return GCMParams(nonce=nonce, aad=context.encode(), tag_bits=128)
