"""The three kinds of custody, each with a stand-in for what holds the keys, behind one face."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from relay.gateway.key_settings import Keys, keys_of
from tests.support.fake_kms import REGION, FakeKms, fake_kms
from tests.support.soft_hsm import Token, soft_hsm_token

KINDS = ("file", "pkcs11", "kms")


class Kind(Protocol):
    """A place for keys. `section` is what a person writes into gateway.toml."""

    section: str

    def names(self) -> set[str]:
        """What the keys are called that it holds."""

    def delete(self, name: str) -> None: ...

    def wrong(self) -> str:
        """The section of somebody whom it does not let in; its words are then `refusal`."""

    refusal: str


class FileKind:
    section = ""
    refusal = ""

    def names(self) -> set[str]:
        return set()

    def delete(self, name: str) -> None:
        raise AssertionError

    def wrong(self) -> str:
        raise AssertionError


class Pkcs11Kind:
    refusal = "refuses the PIN"

    def __init__(self, token: Token, scratch: Path) -> None:
        self.token, self._scratch = token, scratch
        self.section = self._section(token.pin_file)

    def names(self) -> set[str]:
        return self.token.labels()

    def delete(self, name: str) -> None:
        self.token.delete(name)

    def wrong(self) -> str:
        self.token.restart()  # who has logged in already is not asked for the PIN again
        (self._scratch / "wrong-pin").write_text("0000")
        (self._scratch / "wrong-pin").chmod(0o600)
        return self._section(self._scratch / "wrong-pin")

    def _section(self, pin_file: Path) -> str:
        return (f'[keys]\nsource = "pkcs11"\nmodule = "{self.token.module}"\ntoken = "{self.token.label}"\n'
                f'pin_file = "{pin_file}"\n')


class KmsKind:
    refusal = "no AWS credentials"

    def __init__(self, kms: FakeKms, patch: pytest.MonkeyPatch) -> None:
        self.kms, self._patch = kms, patch
        self.section = f'[keys]\nsource = "kms"\nregion = "{REGION}"\nendpoint = "{kms.url}"\n'

    def names(self) -> set[str]:
        return self.kms.aliases()

    def delete(self, name: str) -> None:
        self.kms.delete(name)

    def wrong(self) -> str:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"):
            self._patch.delenv(name, raising=False)
        return self.section


def keys(section: str) -> Keys:
    return keys_of(section.encode())


@contextmanager
def kind_of(name: str, scratch: Path, patch: pytest.MonkeyPatch) -> Iterator[Kind]:
    if name == "file":
        yield FileKind()
    elif name == "pkcs11":
        yield Pkcs11Kind(soft_hsm_token(), scratch)
    else:
        with fake_kms() as kms:
            yield KmsKind(kms, patch)
