"""The scripts' own rules: what a canary search finds, how the lock is split, that the shipped manual is up to date."""

import base64
import hashlib
from pathlib import Path

import pypdf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts import bluez_image, bluez_vm, canaries, make_manual, run_tests, setup

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=12, max_size=40)


@given(needle=TEXT, before=st.binary(max_size=7), after=st.binary(max_size=7))
def test_a_needle_is_found_in_every_form(needle: str, before: bytes, after: bytes) -> None:
    raw = needle.encode()
    wholes = [
        before + raw + after,
        base64.b64encode(before + raw + after),
        base64.urlsafe_b64encode(before + raw + after),
        (before + raw + after).hex().encode(),
        (before + raw + after).hex().upper().encode(),
        before + needle.encode("utf-16-le") + after,
    ]
    for whole in wholes:
        assert any(form in whole for form in canaries.forms(needle)), whole


def test_random_bytes_hold_no_canary(tmp_path: Path) -> None:
    noise = b"".join(hashlib.sha256(bytes([n])).digest() for n in range(256)) * 16
    (tmp_path / "noise").write_bytes(noise + base64.b64encode(noise))
    needles = [canaries.word() for _ in range(50)]
    assert set(canaries.search_folder(tmp_path, needles).values()) == {0}


def test_a_planted_canary_is_counted_once_per_place(tmp_path: Path) -> None:
    word = canaries.word()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_text(f"x{word}y{word}z")
    (tmp_path / "b").write_bytes(base64.b64encode(b"12345" + word.encode() + b"678"))
    assert canaries.search_folder(tmp_path, [word]) == {word: 3}
    assert canaries.size(tmp_path) == 2 * 16 + 3 + 32


def test_windows_cover_a_text() -> None:
    text = "".join(chr(97 + n % 26) for n in range(100))
    pieces = canaries.windows(text)
    assert all(len(piece) == canaries.WINDOW and piece in text for piece in pieces)
    assert len(pieces) == 7
    assert canaries.windows("  short ") == ["short"]
    assert canaries.windows(" \n") == []


def test_the_lock_is_split_without_losing_a_line() -> None:
    text = (ROOT / "requirements.lock").read_text()
    rest, slow = setup.split_lock(text)
    assert sorted((rest + slow).splitlines()) == sorted(text.splitlines())
    assert slow.startswith("llama-cpp-python==") and slow.count("==") == 1 and "--hash=sha256:" in slow
    assert "llama-cpp-python==" not in rest


def test_a_lock_without_the_slow_package_is_refused() -> None:
    with pytest.raises(setup.SetupFailed, match="no entry"):
        setup.split_lock("aiohttp==1 \\\n    --hash=sha256:00\n")


def test_the_wheel_is_tried_with_no_extra() -> None:
    def names(*packages: str) -> set[str]:
        lines = run_tests.light_lock(*packages).splitlines()
        return {line.split("==")[0] for line in lines if line[:1] not in (" ", "#", "")}

    whole = names("causeway")
    assert whole >= {"aiohttp", "cryptography", "msgspec", "typer", "rich", "opentelemetry-sdk", "cffi"}
    assert whole.isdisjoint({"numpy", "sqlcipher3", "llama-cpp-python", "pytest", "bleak"})
    assert names("cryptography", "numpy", "sqlcipher3") == {"cryptography", "cffi", "pycparser", "numpy", "sqlcipher3"}


def test_the_shipped_manual_is_made_from_its_source(tmp_path: Path) -> None:
    made = tmp_path / "made.pdf"
    made.write_bytes(make_manual.render(make_manual.SOURCE.read_text()))
    pages = [[page.extract_text() for page in pypdf.PdfReader(path).pages] for path in (made, make_manual.TARGET)]
    assert pages[0] == pages[1], "run scripts/make_manual.py"
    assert "maximum working pressure of the P-101 is 6 bar" in " ".join(pages[1][3].split())  # page 4


def test_the_cache_of_the_compiled_wheel_tells_builds_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    plain = setup.wheel_cache("a==1")
    assert plain.is_relative_to(tmp_path) and plain == setup.wheel_cache("a==1")
    assert setup.wheel_cache("a==2") != plain
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_NATIVE=OFF")
    assert setup.wheel_cache("a==1") != plain
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, as the XDG specification says
    assert setup.wheel_cache("a==1").is_absolute()


def test_a_kept_wheel_is_whole_and_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = tmp_path / "x-1-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    setup.keep(wheel, tmp_path / "cache" / "deep")
    assert [path.read_bytes() for path in (tmp_path / "cache" / "deep").iterdir()] == [b"wheel"]
    setup.keep(wheel, wheel / "below a file")
    assert "could not keep" in capsys.readouterr().err


def test_time_left_follows_the_pace_of_the_slow_step() -> None:
    progress = setup.Progress({"venv": 4.0, setup.SLOW: 100.0, "packages": 10.0})
    try:
        progress.finish("venv")
        progress.report(setup.SLOW, 0.0, "")
        progress._since[setup.SLOW] -= 60.0
        progress.report(setup.SLOW, 0.5, "half")
        progress.finish("packages")
        assert progress.line() == "set-up: step 2/3 ·  56 % · about 1 min 00 s left · half"
    finally:
        progress.close()


def test_the_bluetooth_machine_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["scripts/test-bluez"])
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda name: None if name in ("cpio", "qemu-system-x86_64") else f"/bin/{name}")
    assert bluez_vm.main() == 2
    assert "cpio qemu-system-x86   (Debian: sudo apt-get install cpio qemu-system-x86)" in capsys.readouterr().err


def test_the_bluetooth_machine_is_made_of_what_links_need(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {name.split("/")[0] for _, name in bluez_image._files()}
    assert {"bleak", "bumble", "dbus_fast", "aiohttp", "cryptography", "sqlcipher3"} <= names
    assert {"pytest", "bluez_peripheral"} <= names  # the suite for radios, and what is compared
    assert not {"llama_cpp", "mypy", ".."} & names
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(bluez_image, "cache", lambda: Path("/nowhere"))
    with pytest.raises(bluez_image.NoImage, match="amd64"):
        bluez_image.image(lambda text: None)
