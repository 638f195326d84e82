"""The machine's TPM 2.0: a device key that cannot leave it, secrets that only it opens, and proof of which TPM it is.

References are to the TPM 2.0 Library specification. What is made here lies outside of the TPM as a `Blob`, wrapped by
the storage root key: nothing of ours stays in it, and its few places for objects are given back after each use. PCRs
are not bound: docs/TPM.md says why. The library is loaded when a TPM is first used.

Each call opens the TPM for itself and takes up to half a second, or several where the TPM is a slow one: not for an
event loop. A `Tpm` may be used by several threads.
"""

import contextlib
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

from store.errors import ForeignTpm, NoTpm, StoreCorrupt, StoreMisuse, TpmError

__all__ = ["SYSTEM_TPM", "Blob", "Endorsement", "Tpm"]

SYSTEM_TPM: Final = "device:/dev/tpmrm0"  # the kernel's resource manager, which programs share
SEALED_LEN: Final = 32
_WAYS: Final = ("device", "swtpm", "mssim", "tabrmd")  # not every library of that name: `cmd` runs programs
_STORAGE_ROOT: Final = 0x81000001  # TCG TPM v2.0 Provisioning Guidance 1.0, table 2
_EK_CERTIFICATE: Final = 0x01C0000A  # TCG EK Credential Profile 2.5, section 2.2.1.4: P-256, low range
_CERTIFICATE_MAX: Final = 2_048
_BLOB_MAX: Final = 1_024
_KEY: Final = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign"
_SEALED: Final = "fixedtpm|fixedparent|userwithauth|noda"
_ROOT: Final = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"
_EK: Final = "fixedtpm|fixedparent|sensitivedataorigin|adminwithpolicy|restricted|decrypt"
# PolicySecret(TPM_RH_ENDORSEMENT), by SHA-256: EK Credential Profile 2.5, B.6.2
_EK_POLICY: Final = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_INTEGRITY: Final = 0x9F  # TPM_RC_INTEGRITY without its parameter, part 2, section 6.6.3
_LOCKOUT: Final = 0x921


@dataclass(frozen=True)
class Blob:
    """An object of a TPM as it lies outside: TPMT_PUBLIC, and TPM2B_PRIVATE's inside, which the TPM has encrypted."""

    public: bytes
    private: bytes

    def encode(self) -> bytes:
        """length(2) || public || length(2) || private"""
        return b"".join(len(part).to_bytes(2, "big") + part for part in (self.public, self.private))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises StoreCorrupt."""
        first, rest = _part(data)
        second, rest = _part(rest)
        if rest:
            raise StoreCorrupt("what a TPM has wrapped is damaged")
        return cls(first, second)


class Endorsement(NamedTuple):
    """Which TPM it is: TPMT_PUBLIC of its endorsement key, and the maker's certificate (DER), b"" if it holds none."""

    public: bytes
    certificate: bytes


class Tpm:
    """One TPM, by a name as tpm2-tss has them: device:PATH, swtpm:path=PATH or swtpm:host=H,port=P, mssim:, tabrmd:."""

    def __init__(self, tcti: str = SYSTEM_TPM) -> None:
        """Opens nothing yet. Raises NoTpm for a name of no known kind."""
        if tcti.partition(":")[0] not in _WAYS or "\0" in tcti:
            raise NoTpm("this names no TPM", hint="a name is as in device:/dev/tpmrm0 or swtpm:path=/run/tpm.sock")
        self.name = tcti

    def check(self) -> None:
        """Raises NoTpm unless it can be used, else TpmError."""
        with self._open() as use:
            use.parent()

    def create_key(self) -> tuple[Blob, bytes]:
        """A new P-256 signing key, and its point (65 bytes, SEC1 2.3.3). Raises TpmError."""
        with self._open() as use:
            api = use.api
            public = api.TPM2B_PUBLIC(api.TPMT_PUBLIC.parse("ecc256:ecdsa-sha256", objectAttributes=_KEY))
            private, made, *_ = use.context.create(use.parent(), None, public)
            point = made.publicArea.unique.ecc
            blob = Blob(made.publicArea.marshal(), bytes(private))
            return blob, b"\x04" + _coordinate(point.x) + _coordinate(point.y)

    def sign(self, key: Blob, digest: bytes) -> bytes:
        """ECDSA over a digest of 32 bytes: 64 bytes r || s. Raises TpmError."""
        with self._open() as use:
            api = use.api
            handle = use.load(key)
            unchecked = api.TPMT_TK_HASHCHECK(tag=api.TPM2_ST.HASHCHECK, hierarchy=api.TPM2_RH.NULL, digest=b"")
            made = use.context.sign(handle, digest, api.TPMT_SIG_SCHEME(scheme=api.TPM2_ALG.NULL), unchecked)
            signature = made.signature.ecdsa
            return _coordinate(signature.signatureR) + _coordinate(signature.signatureS)

    def seal(self, secret: bytes) -> Blob:
        """32 bytes that from now on this TPM alone gives back; they pass encrypted to it. Raises TpmError."""
        if len(secret) != SEALED_LEN:
            raise StoreMisuse("a TPM seals 32 bytes")
        with self._open() as use:
            api = use.api
            parent = use.parent()
            public = api.TPM2B_PUBLIC(api.TPMT_PUBLIC(
                type=api.TPM2_ALG.KEYEDHASH, nameAlg=api.TPM2_ALG.SHA256,
                objectAttributes=api.TPMA_OBJECT.parse(_SEALED),
                parameters=api.TPMU_PUBLIC_PARMS(
                    keyedHashDetail=api.TPMS_KEYEDHASH_PARMS(api.TPMT_KEYEDHASH_SCHEME(scheme=api.TPM2_ALG.NULL))
                ),
            ))
            sensitive = api.TPM2B_SENSITIVE_CREATE(
                api.TPMS_SENSITIVE_CREATE(data=api.TPM2B_SENSITIVE_DATA(secret))
            )
            private, made, *_ = use.context.create(parent, sensitive, public, session1=use.private_session(parent))
            return Blob(made.publicArea.marshal(), bytes(private))

    def unseal(self, sealed: Blob) -> bytes:
        """The 32 bytes; encrypted on their way. Raises ForeignTpm, TpmError."""
        with self._open() as use:
            handle = use.load(sealed)
            parent = use.parent()
            value = bytes(use.context.unseal(handle, session1=use.private_session(parent)))
        if len(value) != SEALED_LEN:
            raise StoreCorrupt("what a TPM has wrapped is damaged")
        return value

    def endorsement(self) -> Endorsement:
        """Raises TpmError."""
        with self._open() as use:
            _, public = use.endorsement_key()
            return Endorsement(public.publicArea.marshal(), use.ek_certificate())

    def activate(self, key: Blob, credential: bytes, encrypted_secret: bytes) -> bytes:
        """What was encrypted to this TPM and this key of it (part 1, section 24; part 3, TPM2_ActivateCredential).

        `credential` is TPM2B_ID_OBJECT's inside, `encrypted_secret` TPM2B_ENCRYPTED_SECRET's. Raises ForeignTpm,
        TpmError.
        """
        with self._open() as use:
            api = use.api
            handle = use.load(key)
            endorsement, _ = use.endorsement_key()
            session = use.session(api.ESYS_TR.NONE, api.TPM2_SE.POLICY)
            use.context.policy_secret(api.ESYS_TR.ENDORSEMENT, session, expiration=0)
            return bytes(use.context.activate_credential(
                handle, endorsement, api.TPM2B_ID_OBJECT(credential), api.TPM2B_ENCRYPTED_SECRET(encrypted_secret),
                session2=session,
            ))

    @contextlib.contextmanager
    def _open(self) -> "Iterator[_Use]":
        api = _library()
        with _errors(api, self.name), ExitStack() as stack:
            try:
                way = stack.enter_context(api.TCTILdr(*_split(self.name)))
                context = stack.enter_context(api.ESAPI(way))
            except (api.TSS2_Exception, OSError, RuntimeError):
                raise NoTpm(f"no TPM can be used at {self.name}", hint=_HINT) from None
            yield _Use(api, context, stack)


_HINT: Final = "is it there, and may this user use it (group tss)? [tpm] in config.toml or CAUSEWAY_TPM names another"


class _Use:
    """A TPM while it is open. Whatever is loaded by this is given back as `stack` is left."""

    def __init__(self, api: Any, context: Any, stack: ExitStack) -> None:
        self.api, self.context, self._stack = api, context, stack
        self._parent: Any = None

    def parent(self) -> Any:
        """The storage root key: the one that is kept in the TPM if it is P-256, else one made by the same template."""
        if self._parent is None:
            self._parent = self._kept_root() or self._made_root()
        return self._parent

    def load(self, blob: Blob) -> Any:
        """Under the storage root key that is kept in the TPM, or by the template, whichever made it."""
        api = self.api
        public = api.TPM2B_PUBLIC(api.TPMT_PUBLIC.unmarshal(blob.public)[0])
        private = api.TPM2B_PRIVATE(blob.private)
        kept = self._kept_root()
        if kept is not None:
            try:
                return self._loaded(kept, private, public)
            except api.TSS2_Exception as error:
                if error.rc & 0xBF != _INTEGRITY:
                    raise
        self._parent = self._made_root()
        return self._loaded(self._parent, private, public)

    def _loaded(self, parent: Any, private: Any, public: Any) -> Any:
        handle = self._held(self.context.load(parent, private, public))
        self._parent = parent
        return handle

    def endorsement_key(self) -> tuple[Any, Any]:
        """Made by the P-256 template of the EK Credential Profile (B.3.4): the same each time. Handle and public."""
        api = self.api
        zeros = api.TPM2B_ECC_PARAMETER(bytes(32))
        template = api.TPMT_PUBLIC.parse("ecc256:aes128cfb", objectAttributes=_EK, authPolicy=_EK_POLICY)
        template.unique.ecc = api.TPMS_ECC_POINT(x=zeros, y=zeros)
        handle, public, *_ = self.context.create_primary(None, api.TPM2B_PUBLIC(template), api.ESYS_TR.ENDORSEMENT)
        return self._held(handle), public

    def ek_certificate(self) -> bytes:
        api = self.api
        try:
            index = self.context.tr_from_tpmpublic(_EK_CERTIFICATE)
        except api.TSS2_Exception:
            return b""
        self._stack.callback(self.context.tr_close, index)
        public, _ = self.context.nv_read_public(index)
        size, data = public.nvPublic.dataSize, b""
        if size > _CERTIFICATE_MAX:
            return b""
        while len(data) < size:
            data += bytes(self.context.nv_read(index, min(512, size - len(data)), len(data)))
        return _der(data)

    def session(self, key: Any, kind: Any) -> Any:
        api = self.api
        return self._held(self.context.start_auth_session(
            key, api.ESYS_TR.NONE, kind, api.TPMT_SYM_DEF.parse("aes128cfb"), api.TPM2_ALG.SHA256
        ))

    def private_session(self, parent: Any) -> Any:
        """One that hides the first parameter both ways from who listens between processor and TPM."""
        api = self.api
        session = self.session(parent, api.TPM2_SE.HMAC)
        flags = api.TPMA_SESSION
        self.context.trsess_set_attributes(session, flags.CONTINUESESSION | flags.DECRYPT | flags.ENCRYPT)
        return session

    def _kept_root(self) -> Any:
        api = self.api
        try:
            handle = self.context.tr_from_tpmpublic(_STORAGE_ROOT)
        except api.TSS2_Exception:
            return None
        self._stack.callback(self.context.tr_close, handle)
        area = self.context.read_public(handle)[0].publicArea
        wanted = api.TPMA_OBJECT.parse("restricted|decrypt|userwithauth|fixedtpm")
        fits = area.type == api.TPM2_ALG.ECC and area.objectAttributes & wanted == wanted
        return handle if fits and area.parameters.eccDetail.curveID == api.TPM2_ECC.NIST_P256 else None

    def _made_root(self) -> Any:
        api = self.api
        template = api.TPMT_PUBLIC.parse("ecc256:aes128cfb", objectAttributes=_ROOT)
        handle, *_ = self.context.create_primary(None, api.TPM2B_PUBLIC(template), api.ESYS_TR.OWNER)
        return self._held(handle)

    def _held(self, handle: Any) -> Any:
        self._stack.callback(self.context.flush_context, handle)
        return handle


def _library() -> Any:
    """tpm2-pytss. Raises NoTpm where it is not installed."""
    os.environ.setdefault("TSS2_LOG", "all+none")  # else the library writes to standard error beside what we say
    try:
        import tpm2_pytss
    except (ImportError, OSError, NotImplementedError, RuntimeError):  # also: without the system's tpm2-tss
        raise NoTpm("the library for TPMs is not installed", hint="install causeway[tpm], and libtss2-dev") from None
    return tpm2_pytss


@contextlib.contextmanager
def _errors(api: Any, name: str) -> Iterator[None]:
    try:
        yield
    except api.TSS2_Exception as error:
        code = int(error.rc)
        if code & 0xBF == _INTEGRITY:
            raise ForeignTpm(
                "this was made by another TPM, or before this one was cleared",
                hint="a copied disk opens only beside its TPM; the passphrase opens the store, `edge join` makes a key",
            ) from None
        hint = "wait until its lockout has passed" if code & 0xFFF == _LOCKOUT else _HINT
        raise TpmError(f"the TPM at {name} refused (code 0x{code:x})", hint=hint) from None


def _split(name: str) -> tuple[str, str | None]:
    kind, _, where = name.partition(":")
    return kind, where or None


def _part(data: bytes) -> tuple[bytes, bytes]:
    length = int.from_bytes(data[:2], "big")
    if not 0 < length <= _BLOB_MAX or len(data) < 2 + length:
        raise StoreCorrupt("what a TPM has wrapped is damaged")
    return data[2:2 + length], data[2 + length:]


def _coordinate(value: Any) -> bytes:
    return bytes(value).rjust(32, b"\0")  # some TPMs leave out leading zeros


def _der(data: bytes) -> bytes:
    """The certificate at the start: the place for it may be longer."""
    if len(data) < 4 or data[:2] != b"\x30\x82":
        return b""
    return data[:4 + int.from_bytes(data[2:4], "big")]
