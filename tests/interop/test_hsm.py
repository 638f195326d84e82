"""Keys in a token: what may be done with them, and what is told when the token does not do its part."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from relay.gateway.errors import ConfigError, KeysUnavailable
from relay.gateway.identity.held import Held
from relay.gateway.key_settings import Pkcs11Keys
from relay.gateway.keys import custody_of
from tests.support.soft_hsm import Token, soft_hsm_token


@pytest.fixture(scope="module")
def hsm() -> Any:
    soft_hsm_token()  # skips where there is none
    from relay.gateway.identity import hsm

    return hsm


@pytest.fixture
def token() -> Token:
    return soft_hsm_token()


def opened(hsm: Any, made: Token, **changes: Any) -> Any:
    settings = {"module": Path(made.module), "token": made.label, "pin": lambda: made.pin}
    return hsm.Hsm(**(settings | changes))


def test_H13_no_key_leaves_the_token(hsm: Any, token: Token) -> None:
    holder = opened(hsm, token)
    holder.make("signs")
    holder.make_wrapping("wraps")

    def look(pkcs11: Any, session: Any) -> None:
        kinds = pkcs11.ObjectClass
        for label, kind in (("signs", kinds.PRIVATE_KEY), ("wraps", kinds.SECRET_KEY)):
            key = session.get_key(object_class=kind, label=label)
            said = [key[pkcs11.Attribute[name]] for name in ("SENSITIVE", "EXTRACTABLE", "LOCAL", "ALWAYS_SENSITIVE",
                                                            "NEVER_EXTRACTABLE", "TOKEN", "PRIVATE")]
            assert said == [True, False, True, True, True, True, True]
            with pytest.raises(pkcs11.AttributeSensitive):
                _ = key[pkcs11.Attribute.VALUE]
            wrapping = session.generate_key(pkcs11.KeyType.AES, 256, template={pkcs11.Attribute.WRAP: True})
            with pytest.raises(pkcs11.KeyUnextractable):
                wrapping.wrap_key(key, mechanism=pkcs11.Mechanism.AES_KEY_WRAP_PAD)
        # What can be extracted can be: the refusals above are the key's.
        loose = session.generate_key(pkcs11.KeyType.AES, 256, template={
            pkcs11.Attribute.SENSITIVE: False, pkcs11.Attribute.EXTRACTABLE: True,
        })
        assert len(wrapping.wrap_key(loose, mechanism=pkcs11.Mechanism.AES_KEY_WRAP_PAD)) == 40

    token.look(look)


def test_a_session_that_is_lost_is_opened_anew(hsm: Any, token: Token) -> None:
    holder = opened(hsm, token)
    public = holder.make("signs")
    for _ in range(2):
        token.restart()
        public.verify(holder.sign("signs", b"message"), b"message")


def test_a_token_that_somebody_has_logged_out_is_logged_in_anew(hsm: Any, token: Token) -> None:
    holder, pins = opened(hsm, token), []

    def beside(pkcs11: Any, session: Any) -> None:
        public = holder.make("signs")
        session.close()  # logs out, and with it the whole process
        public.verify(holder.sign("signs", b"message"), b"message")

    holder = opened(hsm, token, pin=lambda: pins.append(1) or token.pin)
    token.look(beside)
    assert len(pins) == 2  # the first was not needed: the process was logged in


def test_a_wrong_pin_is_tried_once(hsm: Any, token: Token) -> None:
    pins: list[int] = []
    holder = opened(hsm, token, pin=lambda: pins.append(1) or "0000")
    for _ in range(3):
        with pytest.raises(KeysUnavailable, match="refuses the PIN") as refused:
            holder.find("signs")
        assert refused.value.hint is not None and not refused.value.again and "0000" not in str(refused.value)
    assert len(pins) == 1


@pytest.mark.parametrize(("changes", "told"), [
    ({"module": Path("/nowhere/module.so")}, "is not a PKCS#11 module"),
    ({"token": "nobody's"}, "no token with the label"),
])
def test_what_is_missing_is_named(hsm: Any, token: Token, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(KeysUnavailable, match=told) as missing:
        opened(hsm, token, **changes).find("signs")
    assert missing.value.hint is not None and not missing.value.again


def test_what_is_no_module_is_not_loaded(hsm: Any, token: Token) -> None:
    with pytest.raises(KeysUnavailable, match="is not a PKCS#11 module"):
        opened(hsm, token, module=token.pin_file).find("signs")


def test_of_two_tokens_with_one_label_none_is_guessed(hsm: Any, token: Token) -> None:
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", token.label, "--pin", "x123", "--so-pin", "so-pin"],
        check=True, capture_output=True,
    )
    token.restart()
    with pytest.raises(KeysUnavailable, match="several tokens"):
        opened(hsm, token).find("signs")


def test_a_token_that_comes_later_is_found(hsm: Any, token: Token) -> None:
    opened(hsm, token).make("signs")
    later = soft_hsm_token()
    opened(hsm, later).make("signs")


def test_many_threads_sign_by_one_session(hsm: Any, token: Token) -> None:
    holder = opened(hsm, token)
    public = holder.make("signs")
    messages = [bytes([number]) for number in range(40)]
    with ThreadPoolExecutor(4) as threads:
        for message, signature in zip(
            messages, threads.map(lambda message: holder.sign("signs", message), messages), strict=True
        ):
            public.verify(signature, message)


def test_H13_another_key_under_the_name_signs_nothing_for_us(hsm: Any, token: Token) -> None:
    custody = Held(opened(hsm, token), None, "causeway")
    signer, kept = custody.make("intermediate")
    (name,) = token.labels()
    token.delete(name)
    opened(hsm, token).make(name)
    for one in (signer, custody.open(kept)):
        with pytest.raises(KeysUnavailable, match="no longer the key"):
            one.sign(b"message")


def test_what_is_destroyed_is_gone_and_nothing_else(hsm: Any, token: Token) -> None:
    custody = Held(opened(hsm, token), None, "causeway")
    _, kept = custody.make("token")
    other, _ = custody.make("token")
    custody.forget(kept)
    custody.forget(kept)
    with pytest.raises(KeysUnavailable, match="has no key"):
        custody.open(kept)
    other.public.verify(other.sign(b"message"), b"message")
    assert len(token.labels()) == 1


def test_a_pin_is_a_credential_or_a_file(token: Token, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Pkcs11Keys(module=token.module, token=token.label)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigError, match="no PIN") as missing:
        custody_of(keys).make("root")
    assert missing.value.hint is not None
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(ConfigError, match="no PIN"):  # systemd gives others, but not this one
        custody_of(keys).make("root")
    absent = Pkcs11Keys(module=token.module, token=token.label, pin_file=str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="cannot be read"):
        custody_of(absent).make("root")
    shutil.copy(token.pin_file, tmp_path / "gateway-token-pin")
    signer, _ = custody_of(keys).make("root")
    signer.public.verify(signer.sign(b"message"), b"message")
