"""`relay gateway` where a token or AWS KMS holds the keys, as a person runs it: processes, exit codes, words."""

import json
import select
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.test_gateway_cli import LIMIT, relay
from tests.support.custodies import KINDS, Kind, kind_of
from tests.support.mock_provider import KEY

ROOT = Path(__file__).parents[2]


@dataclass
class Lab:
    kind: Kind
    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "gw" / "gateway.toml"

    def init(self, section: str, *more: str | Path) -> "subprocess.CompletedProcess[str]":
        (self.folder / "keys.toml").write_text(section)
        return relay(
            "init", self.folder / "gw", "--trust-domain", "field.example", "--keys", self.folder / "keys.toml",
            "--passphrase-file", self.folder / "pass", *more,
        )

    def ready(self) -> str:
        """What `serve` says when it is: with no passphrase, and nobody to ask for one."""
        process = subprocess.Popen(
            [sys.executable, "-c", "from relay.cli import main; main()", "gateway", "serve", "--config", self.config],
            stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, cwd=ROOT,
        )
        assert process.stderr is not None
        try:
            assert select.select([process.stderr], [], [], LIMIT)[0]
            return process.stderr.readline()
        finally:
            process.terminate()
            process.wait(LIMIT)
            process.stderr.close()


@pytest.fixture(params=KINDS[1:])
def lab(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    for name in ("pass", "rootpass"):
        (tmp_path / name).write_text(f"the {name}\n")
        (tmp_path / name).chmod(0o600)
    with kind_of(request.param, tmp_path, monkeypatch) as kind:
        yield Lab(kind, tmp_path)


@pytest.fixture
def made(lab: Lab) -> Lab:
    done = lab.init(lab.kind.section)
    assert (done.returncode, done.stderr) == (0, "")
    text = lab.config.read_text()
    for port in ("7443", "8443", "8081"):
        text = text.replace(f"127.0.0.1:{port}", "127.0.0.1:0")
    lab.config.write_text(text)
    (lab.folder / "gw" / "provider.key").write_text(KEY)
    (lab.folder / "gw" / "provider.key").chmod(0o600)
    return lab


def test_from_init_to_serve_nobody_is_asked_for_a_passphrase(made: Lab) -> None:
    names = made.kind.names()
    assert {name.split("-")[1] for name in names if name.startswith("causeway-")} == {"unlock", "root", "intermediate"}
    assert "ready" in made.ready()
    done = relay("invite", "edge/lap-1", "--config", made.config)
    assert done.returncode == 0 and done.stdout.startswith("cw1"), done.stderr


def test_a_new_intermediate_names_the_key_that_is_not_used_any_more(made: Lab) -> None:
    (old,) = (name for name in made.kind.names() if "-intermediate-" in name)
    done = relay("rotate-key", "--config", made.config)
    assert done.returncode == 0 and f"not used any more: the key {old};" in done.stdout, done.stderr
    done = relay("rotate-key", "root", "--config", made.config, "--json")
    assert json.loads(done.stdout)["step"] == "published" and json.loads(done.stdout)["unused"] == []
    assert "ready" in made.ready()


def test_a_backup_is_sealed_under_the_passphrase_and_comes_back(made: Lab) -> None:
    done = relay("backup", made.folder / "backup", "--config", made.config)
    assert done.returncode == 3 and "--passphrase-file" in done.stderr
    done = relay("backup", made.folder / "backup", "--config", made.config, "--passphrase-file", made.folder / "pass")
    assert done.returncode == 0, done.stderr
    (made.folder / "gw").rename(made.folder / "lost")
    done = relay("restore", made.folder / "backup", made.folder / "gw", "--nothing-revoked",
                 "--passphrase-file", made.folder / "pass")
    assert done.returncode == 0, done.stderr
    (made.folder / "gw" / "provider.key").write_text(KEY)
    (made.folder / "gw" / "provider.key").chmod(0o600)
    assert "ready" in made.ready()


def test_who_is_not_let_in_is_told_in_a_line_and_a_hint(made: Lab) -> None:
    made.config.write_text(made.config.read_text().replace(made.kind.section, made.kind.wrong()))
    done = relay("devices", "--config", made.config)
    assert done.returncode != 0 and made.kind.refusal in done.stderr
    assert done.stderr.count("\n") == 2 and "Traceback" not in done.stderr, done.stderr


def test_the_root_may_stay_in_a_sealed_file_with_a_passphrase_of_its_own(lab: Lab) -> None:
    section = lab.kind.section + '[keys.root]\nsource = "file"\n'
    done = lab.init(section, "--root-passphrase-file", lab.folder / "rootpass")
    assert done.returncode == 0, done.stderr
    assert (lab.folder / "gw" / "root.sealed").is_file() and not any("-root-" in name for name in lab.kind.names())
    done = relay("rotate-key", "--config", lab.config)
    assert done.returncode == 3 and "--root-passphrase-file" in done.stderr
    done = relay("rotate-key", "--config", lab.config, "--root-passphrase-file", lab.folder / "rootpass")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("section", "told"), [
    ("[keys", "is not TOML"),
    ("[limits]\nsessions = 5\n", "holds the section [keys] and nothing else"),
    ('[keys]\nsource = "disk"\n', "keys.source: invalid value"),
    ('[keys]\nregion = "eu-central-1"\n', "keys.source: this key is missing"),
    ('[keys]\nsource = "pkcs11"\nmodule = "m.so"\ntoken = "t"\n', "keys: `module` and `pin_file` are absolute paths"),
    ('[keys]\nsource = "pkcs11"\nmodule = "/m.so"\ntoken = "t"\n[keys.root]\nsource = "pkcs11"\nmodule = "/m.so"\n'
     'token = "r"\npin_file = "pin"\n', "keys.root: `module` and `pin_file` are absolute paths"),
    ('[keys]\nsource = "kms"\nregion = "eu-central-1"\npin = "1234"\n', "keys.pin: there is no such key"),
])
def test_a_section_that_is_wrong_makes_nothing(tmp_path: Path, section: str, told: str) -> None:
    (tmp_path / "keys.toml").write_text(section)
    (tmp_path / "pass").write_text("p")
    done = relay("init", tmp_path / "gw", "--trust-domain", "field.example", "--keys", tmp_path / "keys.toml",
                 "--passphrase-file", tmp_path / "pass")
    assert done.returncode == 3 and told in done.stderr, done.stderr
    assert "1234" not in done.stderr and not (tmp_path / "gw").exists()
