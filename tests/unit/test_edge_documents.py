"""Files to blocks, and broken files to one clear error."""

import contextlib
import io
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edge_client.documents as documents
from edge_client.documents import parse
from edge_client.errors import BadDocument

MARKDOWN = b"""# Pumps

Intro line one
and two.

## Limits ##

| a | b |
| - | - |

```
# not a heading
```
"""


def pdf(*pages: str, password: str | None = None) -> bytes:
    import pypdf
    from fpdf import FPDF

    made = FPDF()
    made.set_font("helvetica", size=12)
    for page in pages:
        made.add_page()
        made.multi_cell(0, 6, page)
    data = bytes(made.output())
    if password is None:
        return data
    writer = pypdf.PdfWriter(io.BytesIO(data))
    writer.encrypt(password, algorithm="AES-256")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def test_markdown_has_titles_headings_and_lines() -> None:
    content = parse("pumps.md", MARKDOWN)
    assert content.title == "Pumps"
    assert [(block.text.split("\n")[0], block.line, block.level) for block in content.blocks] == [
        ("Pumps", 1, 1), ("Intro line one", 3, 0), ("Limits", 6, 2), ("| a | b |", 8, 0), ("```", 11, 0),
    ]


def test_text_has_paragraphs_with_lines() -> None:
    content = parse("notes.txt", b"\xef\xbb\xbfone\ntwo\r\n\r\nthree")
    assert content.title == "notes"
    assert [(block.text, block.line) for block in content.blocks] == [("one\ntwo", 1), ("three", 4)]


def test_pdf_has_pages() -> None:
    content = parse("manual.pdf", pdf("The maximum pressure is 6 bar.", "Grease it weekly."))
    assert [(block.page, block.line) for block in content.blocks] == [(1, None), (2, None)]
    assert "6 bar" in content.blocks[0].text


def test_running_heads_and_feet_are_left_out_and_content_is_not() -> None:
    texts = ["Prime the pump.", "Open the valve.", "Close the valve.", "Drain it."]
    pages = [
        f"Field Manual 7  Pumps\n\n{bar} bar\n\n{text}\n\nACME Works\n\nPage {number} of 9"
        for number, (bar, text) in enumerate(zip((6, 10, 4, 9), texts, strict=True), start=3)
    ]
    blocks = parse("manual.pdf", pdf(*pages)).blocks
    assert [(block.text, block.page) for block in blocks] == [
        (found, number)
        for number, (bar, text) in enumerate(zip((6, 10, 4, 9), texts, strict=True), start=1)
        for found in (f"{bar} bar\n{text}",)
    ]


def test_pages_that_are_all_alike_are_kept() -> None:
    blocks = parse("manual.pdf", pdf(*["The same form."] * 4)).blocks
    assert [block.page for block in blocks] == [1, 2, 3, 4]


@pytest.mark.parametrize(("name", "data", "says"), [
    ("a.docx", b"PK", "not a Word document"),
    ("a.doc", b"PK", "not supported"),
    ("a", b"text", "not supported"),
    ("a.txt", b"", "no text"),
    ("a.txt", b" \n\t\n", "no text"),
    ("a.txt", b"abc\0def", "not text"),
    ("a.md", b"\xff\xfe\xfa", "not UTF-8"),
    ("a.pdf", b"", "not a PDF"),
    ("a.pdf", b"%PDF-1.7\ngarbage", "not a PDF"),
    ("a.pdf", b"hello", "not a PDF"),
])  # fmt: skip
def test_a_broken_file_is_one_error(
    name: str, data: bytes, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadDocument, match=says):
        parse(name, data)
    assert capfd.readouterr() == ("", ""), "the extractor's own warnings must not reach the terminal"


def test_a_cut_pdf_is_an_error_and_says_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    whole = pdf("Some text.", "More text.")
    for share in (0.2, 0.5, 0.9):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with contextlib.suppress(BadDocument):  # what can be recovered is welcome; what cannot is this error
                parse("cut.pdf", whole[: int(len(whole) * share)])
    assert capfd.readouterr() == ("", "")


def test_a_protected_pdf_says_so() -> None:
    with pytest.raises(BadDocument, match="password"):
        parse("secret.pdf", pdf("hidden", password="open sesame"))


def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_BYTES", 10)
    with pytest.raises(BadDocument, match="limit"):
        parse("a.txt", b"x" * 11)
    monkeypatch.setattr(documents, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(documents, "_MAX_PAGES", 1)
    with pytest.raises(BadDocument, match="2 pages"):
        parse("a.pdf", pdf("one", "two"))


@given(st.sampled_from(["a.txt", "a.md", "a.pdf"]), st.binary(max_size=400))
def test_any_bytes_parse_or_are_refused(name: str, data: bytes) -> None:
    try:
        content = parse(name, data)
    except BadDocument:
        return
    assert content.blocks and all(block.text.strip() for block in content.blocks)


def test_a_page_that_unpacks_to_hundreds_of_megabytes_is_refused_or_cut() -> None:
    import zlib

    import pypdf
    from pypdf.generic import DecodedStreamObject, NameObject

    writer = pypdf.PdfWriter(io.BytesIO(pdf("text")), full=True)
    packed = zlib.compress(b"(a) Tj " + b" " * (300 << 20), 1)
    stream = DecodedStreamObject()
    stream.set_data(packed)
    stream[NameObject("/Filter")] = NameObject("/FlateDecode")
    writer.pages[0][NameObject("/Contents")] = writer._add_object(stream)
    out = io.BytesIO()
    writer.write(out)
    with pytest.raises(BadDocument):
        parse("bomb.pdf", out.getvalue())


def test_pages_may_not_hold_more_text_than_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pdf(*[f"{number} " + "pump " * 400 for number in range(20)])
    limit = len(data) + 1000
    assert parse("a.pdf", data).blocks and limit < 20 * 2000, "the control: it is the text that is too much"
    monkeypatch.setattr(documents, "MAX_BYTES", limit)
    with pytest.raises(BadDocument, match="more text"):
        parse("a.pdf", data)


def test_forms_that_draw_forms_end() -> None:
    """Thirty, each of which draws the next twice: drawn to the end they would take an hour."""
    import pypdf
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = pypdf.PdfWriter(io.BytesIO(pdf("text")), full=True)
    drawn, content = None, b"BT (x) Tj ET"
    for _ in range(30):
        form = DecodedStreamObject()
        form.set_data(content)
        form.update({NameObject("/Type"): NameObject("/XObject"), NameObject("/Subtype"): NameObject("/Form")})
        if drawn is not None:
            inner = DictionaryObject({NameObject("/A"): drawn})
            form[NameObject("/Resources")] = DictionaryObject({NameObject("/XObject"): inner})
        drawn, content = writer._add_object(form), b"/A Do /A Do"
    page = writer.pages[0]
    assert drawn is not None
    resources = page[NameObject("/Resources")].get_object()
    assert isinstance(resources, DictionaryObject)
    resources[NameObject("/XObject")] = DictionaryObject({NameObject("/A"): drawn})
    shown = DecodedStreamObject()
    shown.set_data(b"/A Do")
    page[NameObject("/Contents")] = writer._add_object(shown)
    out = io.BytesIO()
    writer.write(out)
    with contextlib.suppress(BadDocument):
        parse("forms.pdf", out.getvalue())


@pytest.mark.parametrize("nested", [b"[" * 200_000, b"<<" * 100_000, b"[" * 50_000 + b"]" * 50_000, b"<</A" * 50_000])
def test_a_pdf_nested_deeply_is_read_or_refused(nested: bytes) -> None:
    data = pdf("text").replace(b"/Type /Page\n", b"/Type /Page\n/X " + nested + b"\n", 1)
    assert nested in data
    with contextlib.suppress(BadDocument):
        parse("deep.pdf", data)


def test_headings_are_read_however_they_are_spaced() -> None:
    """A pattern that tries each way to share out the spaces would take hours for this."""
    blocks = parse("a.md", b"# a" + b" " * 20_000 + b"b #" + b" " * 20_000 + b"##\n# ##\n# C#\n").blocks
    assert [(block.text.split()[0], block.level) for block in blocks] == [("a", 1), ("#", 0), ("C", 1)]


def test_a_program_that_calls_itself_a_text_is_none() -> None:
    with pytest.raises(BadDocument, match="not text"):
        parse("program.txt", b"\x7fELF\x02\x01\x01" + bytes(200))
