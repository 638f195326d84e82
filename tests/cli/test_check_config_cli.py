"""`relay gateway check-config`: what it finds wrong, by key, what the file means, and its exit code."""

import base64
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from relay.cli import main
from relay.gateway.config import EXAMPLE, parse
from relay.gateway.errors import ConfigError
from relay.gateway.identity import ca
from tests.support.policy_questions import EXAMPLE as FACTORY

GOOD = """
trust_domain = "field.example"
[listen]
session = "tcp:127.0.0.1:7443"
https = "127.0.0.1:8443"
[provider]
base_url = "https://api.example.com/v1"
key_file = "provider.key"
[[allow]]
id = "/edge/*"
models = ["small", "large"]
"""
Told = tuple[int, dict[str, Any], str]


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "gateway"
    shutil.copytree(made, directory)
    key = directory / "provider.key"
    key.write_text("sk-of-nobody-42\n")
    key.chmod(0o600)
    return directory


def checked(folder: Path, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Told:
    """Exit code, the JSON, and the words for people."""
    (folder / "gateway.toml").write_text(text)
    told = []
    for more in (["--json"], []):
        monkeypatch.setattr(
            "sys.argv", ["relay", "gateway", "check-config", "--config", str(folder / "gateway.toml"), *more]
        )
        with pytest.raises(SystemExit) as caught:
            main()
        told.append((int(caught.value.code or 0), capsys.readouterr().out))
    assert told[0][0] == told[1][0] and "sk-of-nobody" not in told[0][1] + told[1][1]
    return told[0][0], json.loads(told[0][1]), told[1][1]


def test_a_good_one_and_what_it_means(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, told, words = checked(folder, GOOD, capsys, monkeypatch)
    assert (code, told["ok"], told["problems"]) == (0, True, [])
    assert words.splitlines() == told["means"] == [
        "this is spiffe://field.example/gateway/main", "encrypted sessions of edges on tcp:127.0.0.1:7443",
        "hops, joining and requests by HTTPS on 127.0.0.1:8443", "openai is asked at api.example.com",
        "/edge/* may use large, small",
    ]


def test_inspection_and_alerts_are_told_too(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "webhook.secret").write_text("whsec_" + base64.b64encode(bytes(range(32))).decode())
    more = (
        '[[inspect]]\nmode = "block"\nmodels = ["small"]\n[[inspect]]\nmode = "log"\nid = "/edge/*"\n'
        '[alerts]\nwebhook = "https://ops.example:9443/a"\nwebhook_secret_file = "webhook.secret"\n'
        'syslog = "unix:/dev/log"\n'
    )
    _, told, _ = checked(folder, GOOD + more, capsys, monkeypatch)
    assert told["means"][4:7] == [
        "what reads like an attack, from anybody to small: block",
        "what reads like an attack, from /edge/* to any model: log",
        "alerts of devices that are throttled, or worse, go to ops.example:9443 and unix:/dev/log",
    ]


def test_who_may_what_is_decided_by_the_rules(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gateway.toml", "factory.cedar"):
        shutil.copy(FACTORY / name, folder)
    _, told, _ = checked(folder, (FACTORY / "gateway.toml").read_text(), capsys, monkeypatch)
    assert any("/edge/factory-floor/*" in line and "defect-detection" in line for line in told["means"])


@pytest.mark.parametrize(("old", "new", "key", "problem", "hint"), [
    ("[[allow]]", "[limits]\ndrain = 3\n[[allow]]", "limits.drain", "there is no such key", "limits.drain_s"),
    ("key_file", "keyfile", "provider.keyfile", "there is no such key", "provider.key_file"),
    ('"provider.key"', '"absent.key"', "provider.key_file", "cannot be read", "write it to"),
    ("127.0.0.1:8443", "192.0.2.1:8443", "listen.https", "no address 192.0.2.1", "ip address"),
    ("127.0.0.1:8443", "0.0.0.0:7443", "listen.https", "port 7443 is that of listen.session", "of its own"),
    ("[[allow]]", '[attestation]\nek_roots = ["absent.pem"]\n[[allow]]', "attestation.ek_roots", "cannot read", "TPMs"),
    ("[[allow]]", '[policy]\ncedar = ["absent.cedar"]\n[[allow]]', "policy.cedar", "cannot read", "relative"),
    ("[provider]", '[provider]\nconnect_s = "1"', "provider.connect_s", "expected", "as in connect_s = 10.0"),
    ("[[allow]]", '[[inspect]]\nmode = "blok"\n[[allow]]', "inspect[0].mode", "blok", '"block" # or off, log'),
    ("[[allow]]", '[inspect]\nmode = "block"\n[[allow]]', "inspect", "expected `array`", "as in [[inspect]]"),
    ("[[allow]]", '[audit]\nsync = "all"\n[[allow]]', "audit.sync", "all", 'as in sync = "group"'),
    ("trust_domain", "trust_domain =", "", "not TOML", "explains every key"),
])
def test_what_is_wrong_is_named_by_key_with_a_hint(
    folder: Path, old: str, new: str, key: str, problem: str, hint: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, told, words = checked(folder, GOOD.replace(old, new, 1), capsys, monkeypatch)
    (one,) = told["problems"]
    assert (code, told["ok"], one["key"], one["warning"]) == (3, False, key, False)
    assert problem in one["problem"] and hint in one["hint"] and f"hint: {one['hint']}" in words


def test_several_at_once_and_warnings_alone_are_no_failure(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "provider.key").chmod(0o640)
    code, told, words = checked(folder, GOOD, capsys, monkeypatch)
    assert code == 0 and "warning: provider.key_file: others than its owner" in words
    (folder / ca.ROOT_CERTIFICATE_FILE).unlink()
    code, told, _ = checked(folder, GOOD.replace("127.0.0.1:8443", "192.0.2.1:8443"), capsys, monkeypatch)
    assert code == 3 and [one["key"] for one in told["problems"]] == ["", "listen.https", "provider.key_file"]
    monkeypatch.delenv("NO_SUCH", raising=False)
    _, told, _ = checked(folder, GOOD.replace('key_file = "provider.key"', 'key_env = "NO_SUCH"'), capsys, monkeypatch)
    assert [one["key"] for one in told["problems"]] == ["", "provider.key_env"]


def test_the_root_s_end_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    end = ca.pem_ends((folder / ca.ROOT_CERTIFICATE_FILE).read_bytes())
    monkeypatch.setattr(time, "time", lambda: end - 86_400)
    code, told, _ = checked(folder, GOOD, capsys, monkeypatch)
    assert code == 0 and "ends" in told["problems"][0]["problem"] and "rotate-key root" in told["problems"][0]["hint"]
    monkeypatch.setattr(time, "time", lambda: end + 1)
    assert checked(folder, GOOD, capsys, monkeypatch)[0] == 3


def test_a_key_that_nobody_could_have_meant_gets_no_suggestion() -> None:
    text = EXAMPLE.format(trust_domain="field.example")
    with pytest.raises(ConfigError) as caught:
        parse(("zzz = 1\n" + text).encode(), Path("/srv"))
    assert str(caught.value) == "zzz: there is no such key" and "did you mean" not in (caught.value.hint or "")


def test_quotas_are_told_and_who_has_none_is_a_warning(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    allow = '[[allow]]\nid = "/workload/*"\nmodels = ["small"]\n'
    rule = '[[quota]]\nname = "edges"\nid = "/edge/*"\nwindow = "1h"\ntokens = 5000\n'
    code, told, words = checked(folder, GOOD + allow + rule, capsys, monkeypatch)
    assert code == 0 and "quota edges: 5,000 tokens of any model in 1 h for each of /edge/*\n" in words
    assert told["problems"] == [{
        "key": "quota", "problem": "no quota counts /workload/*", "warning": True,
        "hint": "add a [[quota]] with that `id`, if it shall not be unlimited",
    }]
    code, told, _ = checked(folder, GOOD + rule.replace("/edge/*", "/workload/*"), capsys, monkeypatch)
    problem, = told["problems"]
    assert code == 3 and problem["key"] == "quota[edges]"
    assert problem["problem"] == "no rule in [[allow]] lets anybody it is for use these models"
