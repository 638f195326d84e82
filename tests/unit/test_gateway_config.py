"""The configuration: strict, and every error names its key."""

from pathlib import Path

import pytest

from relay.gateway.config import EXAMPLE, Config, load, parse
from relay.gateway.errors import ConfigError
from relay.gateway.policy.decisions import Policy
from relay.gateway.policy.questions import Question
from transport.identity.svid import SpiffeId

GOOD = """
trust_domain = "field.example"
[listen]
session = "tcp:127.0.0.1:7443"
https = "127.0.0.1:8443"
health = "127.0.0.1:8081"
[provider]
base_url = "http://127.0.0.1:9000/v1"
key_file = "provider.key"
[[allow]]
id = "/edge/*"
models = ["small"]
"""


def read(text: str) -> Config:
    return parse(text.encode(), Path("/srv/gateway"))


async def models(config: Config, path: str) -> list[str]:
    return await Policy(config.rules).models(Question(SpiffeId("field.example", path), "model:invoke", ""))


def test_tokens_name_the_address_that_clients_use() -> None:
    assert read(GOOD).issuer is None
    assert read(GOOD + '[oauth]\nissuer = "https://gw.example:8443"\n').issuer == "https://gw.example:8443"


async def test_the_documented_form_is_read() -> None:
    config = read(GOOD)
    assert str(config.session) == "tcp:127.0.0.1:7443"
    assert config.https == ("127.0.0.1", 8443)
    assert config.providers[0].key_file == "provider.key"
    assert await models(config, "/edge/lap-1") == ["small"]
    assert await models(config, "/hop/lap-1") == []
    assert config.limits.requests_per_session == 32


async def test_the_example_that_init_writes_is_valid_and_denies_by_default() -> None:
    config = read(EXAMPLE.format(trust_domain="field.example"))
    assert await models(config, "/edge/lap-1") == ["gpt-4o-mini"]
    without = EXAMPLE.format(trust_domain="field.example").partition("[[allow]]")[0]
    assert await models(read(without), "/edge/lap-1") == []


@pytest.mark.parametrize(("old", "new", "told"), [
    ('trust_domain = "field.example"', "", "trust_domain: this key is missing"),
    ('trust_domain = "field.example"', 'trust_domain = "Field Example"', "trust_domain:"),
    ('trust_domain = "field.example"', 'trust_domain = 3', "trust_domain: expected"),
    ("health =", "helth =", "listen.helth: there is no such key"),
    ("[listen]", "surprise = 1\n[listen]", "surprise: there is no such key"),
    ("tcp:127.0.0.1:7443", "udp:127.0.0.1:7443", "listen.session:"),
    ("tcp:127.0.0.1:7443", "wss://127.0.0.1:7443", "listen.session:"),
    ('"127.0.0.1:8443"', '"127.0.0.1"', "listen.https:"),
    ('"127.0.0.1:8081"', '"0.0.0.0:8081"', "listen.health:"),
    ("http://127.0.0.1:9000/v1", "http://api.example.com/v1", "provider.base_url:"),
    ("[provider]", '[oauth]\nissuer = "http://gw.example"\n[provider]', "oauth.issuer:"),
    ("[provider]", '[oauth]\nissuer = "https://gw.example/"\n[provider]', "oauth.issuer:"),
    ("[provider]", '[oauth]\nissuer = "https://GW.example"\n[provider]', "oauth.issuer:"),
    ("[provider]", '[oauth]\nissuer = "https://gw.example:443"\n[provider]', "oauth.issuer:"),
    ("[provider]", '[oauth]\nissuer = "https://gw.example:99999"\n[provider]', "oauth.issuer:"),
    ("[provider]", '[oauth]\nisuer = "https://gw.example"\n[provider]', "oauth.isuer: there is no such key"),
    ('"http://127.0.0.1:9000/v1"\nkey_file = "provider.key"', '"https://api.example/v1"', "provider: set one of"),
    ('key_file = "provider.key"', 'key_file = "a"\nkey_env = "B"', "provider:"),
    ('key_file = "provider.key"', 'key_file = "a"\nidle_s = -1', "provider.idle_s:"),
    ('key_file = "provider.key"', 'key_file = "a"\nname = "x\\n"', "provider.name:"),
    ('id = "/edge/*"', 'id = "edge/*"', "allow[0]:"),
    ('models = ["small"]', "models = []", "allow[0]:"),
    ('models = ["small"]', 'models = "small"', "allow[0].models:"),
    ("[[allow]]", "[limits]\nhandshakes = 0\n[[allow]]", "limits.handshakes:"),
    ("[listen]", "[listen", "not TOML"),
    ('session = "tcp:127.0.0.1:7443"\nhttps = "127.0.0.1:8443"\n', "", "listen:"),
])
def test_every_mistake_names_its_key(old: str, new: str, told: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as error:
        read(GOOD.replace(old, new, 1))
    assert told in str(error.value) and error.value.hint


def test_a_file_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path / "gateway.toml")
    assert "init" in (error.value.hint or "")
