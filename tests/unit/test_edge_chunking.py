"""Passages fit the embedder, lose nothing, and know where they stand."""

import re

from hypothesis import given
from hypothesis import strategies as st

from edge_client.chunking import Block, chunks
from edge_client.documents import parse


def count(text: str) -> int:
    return len(text.split())


def test_a_heading_opens_a_passage_and_is_repeated_in_each() -> None:
    body = "one two three four five six seven eight nine ten"
    blocks = [
        Block("Pumps", line=1, level=1), Block("Limits", line=3, level=2), Block(body, line=5), Block(body, line=7),
        Block("Care", line=9, level=2), Block("Grease it.", line=11),
    ]
    found = list(chunks(blocks, count, 16))
    assert [(piece.text.split("\n")[0], piece.line) for piece in found] == [
        ("Pumps > Limits", 3), ("Pumps > Limits", 7), ("Pumps > Care", 9),
    ]


def test_small_paragraphs_of_a_section_share_a_passage() -> None:
    found = list(chunks([Block("a b", line=1), Block("c d", line=3), Block("e f", line=5)], count, 4))
    assert [(piece.text, piece.line) for piece in found] == [("a b\nc d", 1), ("e f", 5)]


def test_a_passage_never_spans_two_pages() -> None:
    found = list(chunks([Block("a", page=1), Block("b", page=1), Block("c", page=2)], count, 100))
    assert [(piece.text, piece.page) for piece in found] == [("a\nb", 1), ("c", 2)]


def test_a_long_paragraph_is_cut_between_sentences() -> None:
    found = list(chunks([Block("One two three. Four five six. Seven eight nine.")], count, 6))
    assert [piece.text for piece in found] == ["One two three. Four five six.", "Seven eight nine."]


def test_a_heading_without_text_is_kept() -> None:
    blocks = [Block("Empty", line=1, level=1), Block("Next", line=2, level=1), Block("text", line=3)]
    assert [piece.text for piece in chunks(blocks, count, 10)] == ["Empty", "Next\ntext"]


def test_one_endless_word_is_cut_by_characters() -> None:
    def crosses(text: str) -> int:
        return text.count("x")

    found = list(chunks([Block("x" * 1000)], crosses, 64))
    assert sum(crosses(piece.text) for piece in found) == 1000
    assert all(crosses(piece.text) <= 64 for piece in found)


def test_a_cut_paragraph_goes_on_with_its_last_sentence_if_that_is_short() -> None:
    text = "one two three four five six seven eight. It leaks. nine ten eleven twelve. Thirteen fourteen a b c d e."
    found = list(chunks([Block(text)], count, 14))
    assert [piece.text for piece in found] == [
        "one two three four five six seven eight. It leaks. nine ten eleven twelve.", "Thirteen fourteen a b c d e.",
    ], "four words of fourteen are too many"
    text = text.replace("nine ten eleven twelve.", "nine ten eleven twelve thirteen fourteen.")
    assert [piece.text for piece in chunks([Block(text)], count, 14)] == [
        "one two three four five six seven eight. It leaks.", "It leaks. nine ten eleven twelve thirteen fourteen.",
        "Thirteen fourteen a b c d e.",
    ]
    whole = [Block("a b c d e f g."), Block("It leaks."), Block("h i j k l m n.")]
    assert [piece.text for piece in chunks(whole, count, 9)] == ["a b c d e f g.\nIt leaks.", "h i j k l m n."], (
        "between paragraphs nothing is said twice"
    )


def test_a_cut_block_keeps_its_lines_and_says_where_each_piece_begins() -> None:
    text = "\n".join(f"    line{n} = {n}" for n in range(10, 16))
    found = list(chunks([Block("def f():", line=9, level=1), Block(text, line=10)], count, 11))
    assert [(piece.text, piece.line) for piece in found] == [
        ("def f():\n    line10 = 10\n    line11 = 11\n    line12 = 12", 9),
        ("def f():\n    line13 = 13\n    line14 = 14\n    line15 = 15", 13),
    ]


def test_what_is_far_too_long_is_cut_before_it_is_counted() -> None:
    longest = 0

    def counted(text: str) -> int:
        nonlocal longest
        longest = max(longest, len(text))
        return len(text.split()) + len(text) // 10

    for text in ("word " * 200_000, "x" * 1_000_000, "x" * 1_000_000 + " y", " " * 1_000_000 + "x"):
        found = list(chunks([Block(text)], counted, 50))
        assert "".join(piece.text for piece in found).count("x") == text.count("x")
        assert all(piece.text.strip() for piece in found)
    assert longest <= 50 * 64


words = st.text("abcdefghij", min_size=1, max_size=8)
texts = st.lists(st.one_of(words, st.just("stop."), st.just("\n")), min_size=1, max_size=60).map(" ".join)
blocks = st.lists(
    st.builds(
        Block, texts.filter(str.strip), page=st.one_of(st.none(), st.integers(1, 3)), line=st.integers(1, 99),
        level=st.sampled_from([0, 0, 0, 1, 2, 3]),
    ),
    max_size=12,
)


@given(blocks, st.integers(3, 40))
def test_nothing_is_lost_and_nothing_is_too_long(given_blocks: list[Block], limit: int) -> None:
    # Headings are joined by ">", which this counter takes for a word of its own, as the embedder's does.
    found = list(chunks(given_blocks, count, limit))
    assert all(count(piece.text) <= limit for piece in found)
    kept = re.findall(r"[a-j.]+", " ".join(piece.text for piece in found) + " stop.")
    assert {word for block in given_blocks for word in re.findall(r"[a-j.]+", block.text)} <= {*kept, "stop."}


@given(st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=40), st.integers(6, 30))
def test_a_piece_begins_on_its_line(lines: list[list[int]], limit: int) -> None:
    written = [" ".join(f"w{number}x{place}" + "." * (size % 2) for place, size in enumerate(line))
               for number, line in enumerate(lines, 1)]
    content = parse("a.txt", "\n".join(["start.", *written]).encode())
    for piece in chunks(content.blocks, count, limit):
        assert piece.line is not None
        first = piece.text.split()[0]
        assert first in (["start.", *written][piece.line - 1]).split()
