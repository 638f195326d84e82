"""Which files of a folder are taken: links, ignored and hidden ones are not."""

import os
from pathlib import Path

import pytest

from edge_client.folders import find_files, whereabouts


def tree(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in find_files([root])]


def test_folders_are_walked_in_order_and_hidden_files_left_out(tmp_path: Path) -> None:
    tree(tmp_path, "b.md", "a.txt", "sub/c.PDF", ".git/d.md", "sub/.e.txt", "image.png")
    assert found(tmp_path) == ["a.txt", "b.md", "sub/c.PDF"]
    skipped: list[Path] = []
    assert len(list(find_files([tmp_path], skipped.append))) == 3
    assert skipped == [tmp_path / "image.png"], "hidden files are not even counted"
    assert list(find_files([tmp_path / "image.png"])) == [tmp_path / "image.png"], "a named file is never ignored"


@pytest.mark.parametrize(("rules", "left"), [
    ("", ["a.md", "deep/a.md", "deep/b.txt", "deep/down/a.md", "out/c.md"]),
    ("a.md", ["deep/b.txt", "out/c.md"]),
    ("/a.md", ["deep/a.md", "deep/b.txt", "deep/down/a.md", "out/c.md"]),
    ("deep/", ["a.md", "out/c.md"]),
    ("a.md/", ["a.md", "deep/a.md", "deep/b.txt", "deep/down/a.md", "out/c.md"]),
    ("deep/*.md", ["a.md", "deep/b.txt", "deep/down/a.md", "out/c.md"]),
    ("deep/**/a.md", ["a.md", "deep/b.txt", "out/c.md"]),
    ("deep/**", ["a.md", "out/c.md"]),
    ("# a.md\n\n*.md\n!a.md", ["a.md", "deep/a.md", "deep/b.txt", "deep/down/a.md"]),
    ("?.md  ", ["deep/b.txt"]),
    ("out/c[.]md\n(\n\\", ["a.md", "deep/a.md", "deep/b.txt", "deep/down/a.md", "out/c.md"]),
    ("!node_modules/", ["a.md", "deep/a.md", "deep/b.txt", "deep/down/a.md", "node_modules/x.js", "out/c.md"]),
])  # fmt: skip
def test_ignored_files_go_by_their_rules(tmp_path: Path, rules: str, left: list[str]) -> None:
    tree(tmp_path, "a.md", "deep/a.md", "deep/b.txt", "deep/down/a.md", "out/c.md", "node_modules/x.js", "~$a.docx")
    (tmp_path / ".causewayignore").write_text(rules)
    assert found(tmp_path) == left


def test_a_folders_own_rules_come_last(tmp_path: Path) -> None:
    tree(tmp_path, "a.md", "deep/a.md", "deep/b.md")
    (tmp_path / ".causewayignore").write_text("a.md")
    (tmp_path / "deep" / ".causewayignore").write_text("!a.md\n/b.md")
    assert found(tmp_path) == ["deep/a.md"]


def test_links_are_not_followed_round_in_circles_or_out(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    tree(tmp_path, "in/a.md", "out/secret.md")
    (inside / "up").symlink_to(tmp_path)
    (inside / "self.md").symlink_to(inside / "self.md")
    (inside / "secret.md").symlink_to(outside / "secret.md")
    (inside / ".causewayignore").symlink_to(inside / ".causewayignore")
    skipped: list[Path] = []
    assert [path.name for path in find_files([inside], skipped.append)] == ["a.md"]
    assert [path.name for path in skipped] == ["secret.md", "self.md", "up"]
    (tmp_path / "named").symlink_to(outside)
    assert [path.name for path in find_files([tmp_path / "named"])] == ["secret.md"], "what is named is followed"


def test_a_folder_that_cannot_be_read_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    tree(tmp_path, "a/x.md", "b/y.md")
    scandir = os.scandir

    def refused(path: Path):  # type: ignore[no-untyped-def]
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("edge_client.folders.os.scandir", refused)
    assert found(tmp_path) == ["a", "b/y.md"]


def test_a_file_is_gone_where_its_folder_holds_something_else(tmp_path: Path) -> None:
    tree(tmp_path, "a/b.md", "a/odd/c.md")
    (tmp_path / "a" / "link.md").symlink_to(tmp_path / "nowhere")
    asked = {
        "a/b.md": "there", "a/link.md": "there", "a/x.md": "gone", "a/no/such/x.md": "gone", "a/b.md/x.md": "gone",
        "a/\\udcff.md": "unclear",
    }
    assert {name: whereabouts(str(tmp_path / name)) for name in asked} == asked
    assert [whereabouts(source) for source in ("record-7", "dropped/a.md", "", "~/a.md")] == ["unclear"] * 4
    (tmp_path / "a" / "odd" / "c.md").unlink()
    assert whereabouts(str(tmp_path / "a" / "odd" / "c.md")) == "unclear", "an empty folder may be an empty mount"


@pytest.mark.parametrize("refused", ["lstat", "scandir"])
def test_where_reading_is_refused_nothing_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    def deny(*arguments: object) -> None:
        raise PermissionError

    tree(tmp_path, "a.md")
    monkeypatch.setattr(Path if refused == "lstat" else os, refused, deny)
    assert whereabouts(str(tmp_path / "b.md")) == "unclear"
