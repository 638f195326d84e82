"""docs/KEYS.md shows sections that are right, and what the folder's configuration may leave out."""

import re
import sys
from pathlib import Path

import pytest

from relay.gateway.config import EXAMPLE, parse
from relay.gateway.errors import ConfigError, KeysUnavailable
from relay.gateway.identity.held import Held
from relay.gateway.key_settings import KmsKeys, Pkcs11Keys, SoftwareKeys, keys_of, keys_section, root_is_sealed
from relay.gateway.keys import _pin, custody_of

DOC = (Path(__file__).parents[2] / "docs" / "KEYS.md").read_text()
TOKEN, CLOUD, ROOT = re.findall(r"```toml\n(.*?)```", DOC, re.DOTALL)


def keys(section: str) -> object:
    text = EXAMPLE.format(trust_domain="field.example") + keys_section(section.encode())
    found = parse(text.encode(), Path("/nowhere")).keys
    assert keys_of(text.encode()) == found
    return found


def test_the_sections_that_the_document_shows() -> None:
    token, cloud, apart = keys(TOKEN), keys(CLOUD), keys(TOKEN + ROOT)
    assert isinstance(token, Pkcs11Keys) and token.root is None and not root_is_sealed(token)
    assert isinstance(cloud, KmsKeys) and cloud.name == "causeway"
    assert isinstance(apart, Pkcs11Keys) and apart.root is not None and not root_is_sealed(apart)
    sealed = keys(CLOUD + '[keys.root]\nsource = "file"\n')
    assert isinstance(sealed, KmsKeys) and root_is_sealed(sealed)


def test_without_a_section_keys_are_in_software() -> None:
    assert isinstance(keys_of(b""), SoftwareKeys) and root_is_sealed(SoftwareKeys())
    assert not custody_of(SoftwareKeys()).holds
    with pytest.raises(ConfigError, match="keys"):
        keys_of(b'keys = "none"')


def test_a_pin_that_others_may_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "pin"
    file.write_text("1234\n")
    file.chmod(0o600)
    assert _pin(str(file), "gateway-token-pin")() == "1234" and not caplog.records
    file.chmod(0o640)
    assert _pin(str(file), "gateway-token-pin")() == "1234"
    assert [str(file) in line and "1234" not in line for line in caplog.messages] == [True]


def test_a_key_that_is_held_is_not_looked_for_elsewhere() -> None:
    class Holder:
        source = "kms"

        def make(self, name: str) -> object:
            from transport.primitives import SigningKey

            return SigningKey.generate().public

    _, kept = Held(Holder(), None, "causeway").make("intermediate")  # type: ignore[arg-type]
    with pytest.raises(KeysUnavailable, match="is held by kms") as wrong:
        custody_of(SoftwareKeys()).open(kept)
    assert wrong.value.hint is not None


@pytest.mark.parametrize(("section", "library", "module"), [(TOKEN, "pkcs11", "hsm"), (CLOUD, "boto3", "kms")])
def test_what_is_not_installed_is_named(
    section: str, library: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import relay.gateway.identity

    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"relay.gateway.identity.{module}", raising=False)
    monkeypatch.delattr(relay.gateway.identity, module, raising=False)
    with pytest.raises(KeysUnavailable, match=f"{library} is not installed") as missing:
        custody_of(keys_of(section.encode()))
    assert missing.value.hint is not None and "pip install" in missing.value.hint
