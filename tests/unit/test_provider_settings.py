"""[[provider]], [[model]] and [inference] of gateway.toml: who is asked for what, and which mistakes are told."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from relay.gateway.config import Config, parse
from relay.gateway.errors import ConfigError
from relay.gateway.reload import needs_restart

HEAD = 'trust_domain = "field.example"\n[listen]\nhttps = "127.0.0.1:8443"\n'


def provider(name: str, **fields: Any) -> str:
    values = {"name": name, "base_url": f"https://{name}.example/v1", "key_file": "k", **fields}
    return "[[provider]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items() if value)


def model(name: str, **fields: str) -> str:
    return f'[[model]]\nname = "{name}"\n' + "".join(f"{key.strip('_')} = {value}\n" for key, value in fields.items())


def allow(*models: str) -> str:
    return f'[[allow]]\nid = "/edge/*"\nmodels = {json.dumps(list(models))}\n'


def read(*sections: str) -> Config:
    return parse((HEAD + "".join(sections)).encode(), Path("/srv"))


def ways(config: Config, name: str, operation: str = "chat") -> list[tuple[str, str]]:
    return [tuple(way) for way in config.routing.targets(operation, name)]


def test_one_provider_serves_every_model_unless_it_names_some() -> None:
    one = read(HEAD and '[provider]\nbase_url = "https://a.example/v1"\nkey_file = "k"\n')
    assert ways(one, "whatever") == [("openai", "whatever")] and ways(one, "whatever", "messages") == []
    some = read(provider("a", models=["m"]))
    assert ways(some, "m") == [("a", "m")] and ways(some, "other") == []


def test_several_in_the_order_of_the_file() -> None:
    config = read(provider("a", models=["m", "n"]), provider("b", models=["m"]), provider("c"))
    assert ways(config, "m") == [("a", "m"), ("b", "m")]
    assert ways(config, "n") == [("a", "n")]
    assert ways(config, "other") == [("c", "other")]


def test_each_api_has_its_routes() -> None:
    config = read(
        provider("a"), provider("b", api="anthropic"), provider("o", models=["small"], routes=["chat", "embeddings"]),
        '[inference]\nbase_url = "http://127.0.0.1:8000"\nmodels = ["defects"]\n',
    )
    assert ways(config, "claude", "messages") == [("b", "claude")] and ways(config, "claude") == [("a", "claude")]
    assert ways(config, "small", "embeddings") == [("o", "small")] and ways(config, "small", "responses") == []
    assert ways(config, "small", "messages") == [], "it is named, so it is nobody else's"
    assert ways(config, "defects", "infer") == [("inference", "defects")] and ways(config, "defects") == []


def test_names_in_the_order_that_they_give() -> None:
    config = read(
        provider("a"), provider("z", api="azure", base_url="https://z.example", api_version="2024-10-21"),
        model("best", providers='["z", "a"]', as_='{ z = "gpt4o-eu", a = "gpt-4o" }'),
        model("default", as_='"best"'), model("plain", providers='["a"]'), model("short", as_='"gpt-4o-mini"'),
    )
    assert ways(config, "best") == ways(config, "default") == [("z", "gpt4o-eu"), ("a", "gpt-4o")]
    assert ways(config, "plain") == [("a", "plain")] and ways(config, "short") == [("a", "gpt-4o-mini")]
    assert ways(config, "anything") == [("a", "anything")], "and never Azure's, in whose paths it would be"
    assert {"best", "default", "plain", "short"} == set(config.rules.models)


def test_who_is_named_in_models_alone_serves_nothing_else() -> None:
    config = read(provider("a"), provider("b"), model("m", providers='["a", "b"]'))
    assert ways(config, "m") == [("a", "m"), ("b", "m")] and ways(config, "other") == []


@pytest.mark.parametrize(("sections", "told"), [
    ([provider("a"), provider("a")], "provider: two have the same name"),
    ([provider("a"), provider("b")], "provider: a and b do not say which models they serve"),
    ([provider("a"), model("m", providers='["b"]')], "model[0].providers: there is no provider b"),
    ([provider("a"), model("m", providers='["b"]', as_='{ a = "x" }')], "model[0].providers: there is no provider b"),
    ([provider("a"), model("m", providers='["a", "a"]')], "model[0].providers: one of them is there twice"),
    ([provider("a"), model("m")], "model[0]: neither `providers` nor another model by `as`"),
    ([provider("a"), model("m", as_='"m"')], "model[0].as: m is m, which leads nowhere"),
    ([provider("a"), model("m", as_='"n"'), model("n", as_='"o"'), model("o", as_='"n"')],
     "model[1].as: m is n is o is n, which leads nowhere"),
    ([provider("a", models=["x"]), model("m", as_='"y"')], "model[0].as: no provider serves y"),
    ([provider("a", models=["x"]), model("m", providers='["a"]', as_='"y"')], "model[0]: a does not serve y"),
    ([provider("a"), model("m", providers='["a"]', as_='{ b = "y" }')], "model[0].as: b is not among its providers"),
    ([provider("a"), model("m", as_='"x"'), model("m", as_='"y"')], "model[1].name: m is there twice"),
    ([provider("a", models=["x"]), allow("x", "y")], "allow[0]: no provider serves y"),
    ([provider("a", api_version="2024-10-21")], 'provider.api_version: this is for api = "azure"'),
    ([provider("a"), provider("b", models=["x"], anthropic_beta=["y"])], "provider[1].anthropic_beta: this is for"),
    ([provider("a", api="anthropic", routes=["chat"])], "provider.routes: Anthropic's API has /v1/messages alone"),
    ([provider("a", api="azure", base_url="https://z.example", api_version="2024-10-21", models=["a/../b"])],
     "a/../b is not the name of a deployment"),
    ([provider("a", api="azure", base_url="https://z.example", api_version="2024-10-21"),
      model("m", providers='["a"]', as_='"x/y"')], "model[0]: x/y is not the name of a deployment"),
    ([provider("a", base_url="http://far.example/v1")], "provider.base_url: the provider's base URL is plain http"),
    ([provider("a", key_file="")], "provider: set one of `key_file`"),
    ([provider("a", models=["x y"])], "provider[0].models[0]: expected"),
    ([provider("inference"), '[inference]\nbase_url = "http://127.0.0.1:8000"\nmodels = ["m"]\n'],
     "inference.name: a provider has this name"),
    (["provider = []\n"], "provider: there is none"),
])
def test_every_mistake_is_told_at_the_start(sections: list[str], told: str) -> None:
    text = "".join(sections)
    with pytest.raises(ConfigError) as refused:
        parse(((text + HEAD) if text.startswith("provider =") else (HEAD + text)).encode(), Path("/srv"))
    assert told in str(refused.value) and refused.value.hint


def test_what_the_documentation_shows_is_valid() -> None:
    text = (Path(__file__).parents[2] / "docs" / "PROVIDERS.md").read_text()
    one, several, alias = re.findall(r"(?s)```toml\n(.+?)```", text)
    assert ways(read(one), "any") == [("openai", "any")]
    config = read(several, alias)
    assert ways(config, "default") == [("azure-eu", "gpt4o-eu"), ("openai", "gpt-4o")]
    assert ways(config, "llama3.2") == [("local", "llama3.2")] and ways(config, "llama3.2", "responses") == []
    assert ways(config, "claude-sonnet-4-5", "messages") == [("claude", "claude-sonnet-4-5")]


@pytest.mark.parametrize("effect", ["permit", "forbid"])
def test_a_rule_in_a_file_names_models_that_exist(tmp_path: Path, effect: str) -> None:
    rule = f'{effect} (principal, action == Action::"model:invoke", resource == Model::"MODEL");'
    text = HEAD + provider("a", models=["m"]) + '[policy]\ncedar = ["x.cedar"]\n'
    (tmp_path / "x.cedar").write_text(rule.replace("MODEL", "m"))
    parse(text.encode(), tmp_path)
    (tmp_path / "x.cedar").write_text(rule.replace("MODEL", "n"))
    with pytest.raises(ConfigError, match=r"^x\.cedar:1: no provider serves n"):
        parse(text.encode(), tmp_path)


def test_a_model_of_both_kinds_is_listed() -> None:
    config = read(provider("a", models=["m"]), '[inference]\nbase_url = "http://127.0.0.1:1"\nmodels = ["m", "n"]\n')
    assert config.rules.models == ("m",)


def test_a_server_on_this_machine_needs_no_key() -> None:
    config = read(provider("ollama", base_url="http://127.0.0.1:11434/v1", key_file=""))
    assert config.providers[0].keys == 0


def test_what_the_file_means_in_words() -> None:
    assert list(read(provider("a")).routing.told()) == []
    config = read(provider("a"), provider("b", models=["x"]), model("m", providers='["b", "a"]', as_='"x"'))
    assert list(config.routing.told()) == [
        "m is asked of b as x, then a as x (chat, embeddings, responses)",
        "x is asked of b (chat, embeddings, responses)",
        "every other model is asked of a (chat, embeddings, responses)",
    ]


def test_models_and_aliases_change_while_it_runs_and_providers_do_not() -> None:
    old = read(provider("a", models=["m"]))
    assert needs_restart(old, read(provider("a", models=["n"]), model("o", as_='"n"'))) == []
    assert needs_restart(old, read(provider("a", models=["m"], first_byte_s=5))) == ["provider.first_byte_s"]
    assert needs_restart(old, read(provider("a", models=["m"]), provider("b"))) == ["provider"]
