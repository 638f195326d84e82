"""Model files that are none, are cut short, unknown or too large for the memory, and what is said of them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.config import Config
from edge_client.engine import loading
from edge_client.engine.gguf_file import read_gguf
from edge_client.engine.loading import free_memory, load
from edge_client.engine.models import chat_model
from edge_client.errors import MemoryShort, ModelUnusable
from tests.support.gguf_bytes import gguf

MIB = 1 << 20


def test_a_file_tells_its_architecture_size_and_context(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(tensors=[(1000, 0, 0), (500, 0, 4000)]))
    file = read_gguf(path)
    assert file.architecture == "llama" and file.whole == file.size == path.stat().st_size and not file.cut_short
    assert file.context_bytes(4096) == 2 * 2 * 4096 * 30 * 3 * 64
    path.write_bytes(gguf(tensors=[(1000, 0, 0), (500, 0, 4000)], data=5999))
    assert read_gguf(path).cut_short
    path.write_bytes(gguf(tensors=[(1000, 999, 0)], data=0))
    assert read_gguf(path).whole is None and not read_gguf(path).cut_short, "of an unknown type nothing is claimed"


WHOLE = gguf(tensors=[(8, 0, 0)])


@given(st.one_of(st.binary(max_size=300), st.integers(0, len(WHOLE) - 33).map(lambda n: WHOLE[:n]),
                 st.binary(max_size=80).map(lambda tail: WHOLE[:24] + tail)))
def test_whatever_is_in_a_file_it_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    path.write_bytes(content)
    try:
        read_gguf(path)
    except ModelUnusable as error:
        assert error.hint


@pytest.mark.parametrize(("content", "says"), [
    (gguf(tensors=[(3 * MIB, 0, 0)], data=4 * MIB), r"cut short: it has 4 of 12 MiB"),
    (gguf(architecture="nosuchthing"), "architecture nosuchthing"),
    (gguf(architecture="\x1b[31m"), "unknown architecture"),
    (b"PK\x03\x04" + bytes(99), "no GGUF"),
])  # fmt: skip
def test_what_cannot_be_loaded_is_said_clearly(
    content: bytes, says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelUnusable, match=says) as caught:
        load(path, n_ctx=512)
    assert caught.value.hint and "m.gguf" in str(caught.value) and capfd.readouterr() == ("", "")


def test_a_model_over_the_free_memory_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(tensors=[(8, 0, 0)]))
    needed = path.stat().st_size + 2 * 2 * 4096 * 30 * 3 * 64 + 64 * MIB
    monkeypatch.setattr(loading, "free_memory", lambda: needed - MIB)
    with pytest.raises(MemoryShort, match=r"about 154 MiB of memory, 153 MiB are free") as caught:
        load(path, n_ctx=4096)
    assert "context" in (caught.value.hint or "")
    for enough in (needed, None):
        monkeypatch.setattr(loading, "free_memory", lambda enough=enough: enough)
        with pytest.raises(ModelUnusable):
            load(path, n_ctx=4096)


@pytest.mark.parametrize("error", [ValueError("Failed to create llama_context"), MemoryError()])
def test_a_context_without_room_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise error

    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(tensors=[(8, 0, 0)]))
    monkeypatch.setattr("llama_cpp.Llama", refuse)
    monkeypatch.setattr(loading, "free_memory", lambda: None)
    with pytest.raises(MemoryShort, match="no room for its context of 512 tokens"):
        load(path, n_ctx=512)


def test_free_memory_is_the_least_of_machine_and_group(tmp_path: Path) -> None:
    info, group = tmp_path / "meminfo", tmp_path / "group"
    assert free_memory(info, group) is None
    info.write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    assert free_memory(info, group) == 2 * MIB
    group.mkdir()
    (group / "memory.max").write_text("max\n")
    assert free_memory(info, group) == 2 * MIB
    (group / "memory.max").write_text("1048576\n")
    (group / "memory.current").write_text("1048000\n")
    (group / "memory.stat").write_text("anon 900000\ninactive_file 1000\nactive_file 24\n")
    assert free_memory(info, group) == 576 + 1024
    (group / "memory.stat").unlink()
    assert free_memory(info, group) == 2 * MIB, "half of the figures are none"


@pytest.mark.model
def test_the_real_model_is_whole(tmp_path: Path) -> None:
    path = chat_model(Config(tmp_path))
    file = read_gguf(path)
    assert file.architecture == "llama" and file.whole == file.size and file.context_bytes(4096) > MIB
    cut = tmp_path / "cut.gguf"
    with path.open("rb") as stream:
        cut.write_bytes(stream.read(file.size // 2))
    with pytest.raises(ModelUnusable, match="cut short"):
        load(cut, n_ctx=512)
