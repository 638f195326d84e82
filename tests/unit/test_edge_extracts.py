"""What a text holds of a question, and what a statement may claim to have from it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.extracts import borne_out, extract, sentences, share, telling, unnumbered

MANUAL = "The P-101 weighs 92 kilograms without its motor and 168 with it. The log is kept for five years."


def test_telling_words_leave_out_what_asks() -> None:
    assert telling("How often may the P-101 be started in an hour?") == {"p-101", "start", "hour"}
    assert telling("How tight is it?") == set() == telling("")
    assert telling("the TIGHTNESS of Tighter bolts") == {"tight", "bolts"}, "words of one stem are one"
    assert telling("seven bolts, 2,900 turns") == {"7", "bolts", "2900", "turns"}


def test_a_share_is_of_the_question() -> None:
    words = telling("Who manufactured the P-101?")
    assert share(words, MANUAL) == 0.5
    assert share((), MANUAL) == 0


@pytest.mark.parametrize(("statement", "stands"), [
    ("The P-101 weighs 168 kilograms with its motor.", True),
    ("The log is kept for 5 years.", True),
    ("The P-101 weighs 186 kilograms with its motor.", False),
    ("The P-101 weighs 16 kilograms.", False),
    ("The log is destroyed after long disputes.", False),
    ("The P-101 weighs.", False),
    ("", False),
])  # fmt: skip
def test_a_statement_stands_there_or_not(statement: str, stands: bool) -> None:
    assert borne_out(statement, "How much does the P-101 weigh?", MANUAL) is stands


def test_rows_of_a_table_are_sentences_and_lines_of_a_page_are_not() -> None:
    assert sentences("A line\nthat goes on. Another\n\n| 16 | Distress |\n| 11 | Talk |") == [
        "A line that goes on.", "Another", "| 16 | Distress |", "| 11 | Talk |",
    ]  # fmt: skip


def test_an_extract_leaves_out_the_headings_before_a_piece() -> None:
    text = "Radios > 3. The HV-3 > 3.1 What it is\nThe HV-3 weighs 310 grams with its battery,\nand floats."
    assert extract(text, "How much does the HV-3 weigh?") == "The HV-3 weighs 310 grams with its battery, and floats."
    assert extract("3. The HV-3\n3.1 What it is\nIt floats.", "float?") == "The HV-3 What it is It floats."
    assert unnumbered("1.5 Limits\n6 bar, 2.5 at\n2. Order") == "Limits\n6 bar, 2.5 at\nOrder", "and no others"


def test_what_is_wanted_twice_counts_twice() -> None:
    text = "The pressure of the P-101 is 6 bar. The P-205 has 10 bar. " + "Other things follow at great length. " * 8
    both = "the pressure of the P-101, and of the P-205?"
    assert extract(text, both).startswith("The pressure of the P-101 is 6 bar.")
    filler = text.replace("6 bar. ", "6 bar. " + "Nothing is said here about any of it at all. " * 6)
    assert "P-205 has" in extract(filler, "what is the P-101?", "and the P-205?", "and the P-205?")
    assert "P-205 has" not in extract(filler, both), "the control"


@given(st.text(max_size=2000), st.text(max_size=50))
def test_an_extract_is_bounded_and_harmless_to_a_terminal(text: str, wanted: str) -> None:
    shown = extract(text, wanted)
    assert len(shown) <= 240 and shown.isprintable()
