"""Tokens of SoftHSM 2, of this process and those that it starts. Without what they need, a skip."""

import atexit
import functools
import importlib
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

Result = TypeVar("Result")
_MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
            "/usr/lib64/pkcs11/libsofthsm2.so", "/opt/homebrew/lib/softhsm/libsofthsm2.so")
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Token:
    """`label` and PIN of a token that is new, and where the PIN is written."""

    module: str
    label: str
    pin: str
    pin_file: Path

    def look(self, work: Callable[[Any, Any], Result]) -> Result:
        """`work(pkcs11, session)`, by the library alone, not as our program opens it, and in a thread that has ended
        then: the module leaves errors behind in what OpenSSL keeps for each.
        """

        def run() -> Result:
            pkcs11 = importlib.import_module("pkcs11")
            library = pkcs11.lib(self.module)
            if not list(library.get_tokens(token_label=self.label)):
                library.reinitialize()  # it was made since the module looked
            token = library.get_token(token_label=self.label)
            try:
                session = token.open(rw=True, user_pin=self.pin)
            except pkcs11.UserAlreadyLoggedIn:  # our program has, and it counts for the whole process
                session = token.open(rw=True)
            return work(pkcs11, session)

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(run).result()

    def delete(self, label: str) -> None:
        def work(pkcs11: Any, session: Any) -> None:
            found = list(session.get_objects({pkcs11.Attribute.LABEL: label}))
            assert found
            for one in found:
                one.destroy()

        self.look(work)

    def labels(self) -> set[str]:
        """Of private and secret keys."""

        def work(pkcs11: Any, session: Any) -> set[str]:
            kinds = (pkcs11.ObjectClass.PRIVATE_KEY, pkcs11.ObjectClass.SECRET_KEY)
            return {one.label for kind in kinds for one in session.get_objects({pkcs11.Attribute.CLASS: kind})}

        return self.look(work)

    def restart(self) -> None:
        """As if the module had been loaded anew: every session of this process is gone."""
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: importlib.import_module("pkcs11").lib(self.module).reinitialize()).result()


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="softhsm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    return folder


def soft_hsm_token() -> Token:
    """A new one, in a folder that lasts as long as the process."""
    module = next((path for path in _MODULES if Path(path).is_file()), None)
    if module is None or shutil.which("softhsm2-util") is None:
        pytest.skip("SoftHSM 2 is not installed")
    try:
        importlib.import_module("pkcs11")
    except ImportError:
        pytest.skip("python-pkcs11 is not installed")
    number = next(_numbers)
    token = Token(module, f"token-{number}", f"pin-{number}", _folder() / f"pin-{number}")
    token.pin_file.write_text(token.pin + "\n")
    token.pin_file.chmod(0o600)
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", token.label, "--pin", token.pin, "--so-pin", "so-pin"],
        check=True, capture_output=True,
    )
    return token
