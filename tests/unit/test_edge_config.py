"""Configuration, passphrases and models: found where they should be, refused clearly elsewhere."""

from pathlib import Path

import pytest

import edge_client.engine.models as models
import edge_client.passphrase as passphrases
from edge_client.config import Config
from edge_client.engine.base import Message, Sampling
from edge_client.engine.llama import LlamaChat, LlamaEmbedder
from edge_client.engine.minilm import convert
from edge_client.errors import BadUse, ModelMissing, ModelUnusable, NoPassphrase
from edge_client.passphrase import passphrase
from store.errors import StoreMissing
from transport.messages import Padding


def test_defaults_without_a_file(tmp_path: Path) -> None:
    config = Config.load({"CAUSEWAY_HOME": str(tmp_path)})
    assert config == Config(tmp_path)
    assert Config.load({}).home == Path.home() / ".causeway"


def test_a_file_is_read_strictly(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[model]\npath = "/m.gguf"\ncontext = 1024\n[relay]\nmodel = "big"\n')
    config = Config.load({"CAUSEWAY_HOME": str(tmp_path)})
    assert (config.model.path, config.model.context, config.relay.model) == ("/m.gguf", 1024, "big")
    file.write_text('[relay]\npadding = "constant"\n')
    assert Config.load({"CAUSEWAY_HOME": str(tmp_path)}).relay.padding is Padding.CONSTANT
    assert config.store.lock_after_s == 8 * 3600
    file.write_text("[store]\nlock_after_s = 0\n")
    assert Config.load({"CAUSEWAY_HOME": str(tmp_path)}).store.lock_after_s == 0
    for text in ("[model]\ncontext = 5\n", "[modle]\n", "[model]\npaht = 1\n", "= broken", "[model]\ncontext = '1'\n",
                 "[relay]\npadding = 'loud'\n", "[store]\nlock_after_s = -1\n",
                 "[identity]\nsource = 'spire'\n", "[identity]\nsocket = '/a'\n"):
        file.write_text(text)
        with pytest.raises(BadUse, match=r"config\.toml"):
            Config.load({"CAUSEWAY_HOME": str(tmp_path)})
    for text, hint in (
        ("[relay]\nendpoint = 1\n",
         "[relay] may hold: model, endpoints, early_data, give_up_s, padding, discover, wss_trust"),
        ("[bluetooth]\nradios = 'x'\n", "[bluetooth] may hold: radio"),
        ("[model]\ncontext = 5\n", "[model] may hold: path, context, threads, rest_after_s"),
        ("[modle]\n", "its tables are [model], [embedder], [relay], [router], [bluetooth], [store], [identity], [tpm]"),
        ("= broken", "its tables are [model], [embedder], [relay], [router], [bluetooth], [store], [identity], [tpm]"),
    ):
        file.write_text(text)
        with pytest.raises(BadUse) as caught:
            Config.load({"CAUSEWAY_HOME": str(tmp_path)})
        assert caught.value.hint == hint
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(BadUse):
        Config.load({"CAUSEWAY_HOME": str(tmp_path)})


def test_a_passphrase_comes_from_file_then_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pass"
    file.write_text("from file\n")
    file.chmod(0o600)
    both = {"CAUSEWAY_PASSPHRASE_FILE": str(file), "CAUSEWAY_PASSPHRASE": "from environment"}
    assert passphrase(new=True, environ=both).expose() == b"from file"
    assert capsys.readouterr().err == ""
    file.chmod(0o640)
    assert passphrase(new=True, environ=both).expose() == b"from file"
    assert f"warning: others may read or write {file}" in capsys.readouterr().err
    assert passphrase(new=False, environ={"CAUSEWAY_PASSPHRASE": "env"}).expose() == b"env"
    assert "for tests" in capsys.readouterr().err


def test_a_missing_passphrase_file_names_the_variable(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path / "absent" / "below"):
        with pytest.raises(StoreMissing, match=str(path)) as caught:
            passphrase(new=False, environ={"CAUSEWAY_PASSPHRASE_FILE": str(path)})
        assert "CAUSEWAY_PASSPHRASE_FILE" in (caught.value.hint or "")


def test_a_new_passphrase_is_asked_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passphrases, "_has_terminal", lambda: True)
    answers = iter(["one", "two", "same", "same", "old"])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(answers))
    with pytest.raises(BadUse, match="differ"):
        passphrase(new=True, environ={})
    assert passphrase(new=True, environ={}).expose() == b"same"
    assert passphrase(new=False, environ={}).expose() == b"old"


def test_without_a_terminal_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passphrases, "_has_terminal", lambda: False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(NoPassphrase) as caught:
        passphrase(new=False, environ={})
    assert "CAUSEWAY_PASSPHRASE_FILE" in (caught.value.hint or "")


def test_absent_models_are_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_CHAT", ("no-such-distribution", ".gguf"))
    monkeypatch.setattr(models, "_EMBEDDER", ("no-such-distribution", ".safetensors"))
    for find in (models.chat_model, models.embedder_file):
        with pytest.raises(ModelMissing) as caught:
            find(Config(tmp_path))
        assert "edge models install" in (caught.value.hint or "")
    assert models.installed() == {"model": False, "embedder": False}


def test_a_configured_model_must_exist(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[model]\npath = "/nowhere.gguf"\n[embedder]\npath = "/nowhere.gguf"\n')
    config = Config.load({"CAUSEWAY_HOME": str(tmp_path)})
    for find in (models.chat_model, models.embedder_file):
        with pytest.raises(ModelMissing, match="nowhere"):
            find(config)


def test_the_lock_of_the_weights_is_found_and_has_hashes() -> None:
    text = models.lock_file().read_text()
    assert text.count("==") == 2 and text.count("--hash=sha256:") >= 2 and "://" not in text


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64, b"not a model at all" * 99])
async def test_a_broken_model_file_is_one_clear_error(
    content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelUnusable, match=r"broken\.gguf"):
        async for _ in LlamaChat(lambda: path, name="m", context=512).generate([Message("user", "x")], Sampling()):
            raise AssertionError("it answered")
    with pytest.raises(ModelUnusable):
        await LlamaEmbedder(path, model_id="m").embed(["x"])
    assert capfd.readouterr() == ("", ""), "the library's own messages must not reach the terminal"


@pytest.mark.parametrize("weights", [None, b"", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}"])
def test_a_failed_conversion_leaves_nothing_behind(weights: bytes | None, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    if weights is not None:
        (source / "model.safetensors").write_bytes(weights)
        (source / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
        (source / "config.json").write_text(
            '{"vocab_size": 5, "num_hidden_layers": 1, "max_position_embeddings": 8, "hidden_size": 4,'
            ' "intermediate_size": 4, "num_attention_heads": 1, "layer_norm_eps": 1e-12, "type_vocab_size": 2}'
        )
    with pytest.raises(ModelUnusable) as caught:
        convert(source, tmp_path / "out" / "model.gguf")
    assert "edge models install" in (caught.value.hint or "")
    assert list((tmp_path / "out").iterdir()) == []
