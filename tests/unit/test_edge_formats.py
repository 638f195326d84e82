"""HTML, CSV, source code and Word documents to blocks; what was made to harm is refused, and soon."""

import io
import re
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edge_client.docx as docx
from edge_client.chunking import Block
from edge_client.documents import parse
from edge_client.errors import BadDocument

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
STYLES = f"""<w:styles {W}><w:style w:styleId="berschrift2"><w:name w:val="heading 2"/></w:style>
<w:style w:styleId="Titel"><w:name w:val="Title"/></w:style><w:style w:styleId="n"><w:name w:val="Normal"/></w:style>
</w:styles>"""


def word(body: str, *, styles: str | None = STYLES, title: str | None = None, **more: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", f"<w:document {W}><w:body>{body}</w:body></w:document>")
        if styles is not None:
            archive.writestr("word/styles.xml", styles)
        if title is not None:
            archive.writestr("docProps/core.xml", f"<c xmlns:d='x'><d:title>{title}</d:title><d:s>no</d:s></c>")
        for name, content in more.items():
            archive.writestr(name, content)
    return out.getvalue()


def p(text: str, style: str = "") -> str:
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{properties}<w:r><w:t>{text}</w:t></w:r></w:p>"


def shown(blocks: tuple[Block, ...]) -> list[tuple[str, int | None, int]]:
    return [(block.text, block.line, block.level) for block in blocks]


def test_word_has_headings_rows_and_pages() -> None:
    table = "<w:tbl>" + "".join(
        "<w:tr>" + "".join(f"<w:tc>{p(cell)}</w:tc>" for cell in row) + "</w:tr>" for row in (("a", "b c"), ("d", ""))
    ) + "</w:tbl>"
    body = (
        p("Pumps", "Titel") + p("Limits", "berschrift2") + p("6 bar &amp; no ", "n").replace("</w:t>", (
            "</w:t><w:tab/><w:delText>gone</w:delText><w:instrText>PAGE</w:instrText><w:t>more</w:t><w:br/><w:t>x</w:t>"
        )) + table + "<w:p><w:r><w:lastRenderedPageBreak/><w:t>next</w:t></w:r></w:p>"
        + f"<w:p><w:r><w:t>out</w:t><Choice>{p('box')}</Choice><Fallback>{p('box')}</Fallback></w:r></w:p>"
    )
    content = parse("manual.docx", word(body))
    assert content.title == "Pumps"
    assert [(b.text, b.page, b.level) for b in content.blocks] == [
        ("Pumps", 1, 1), ("Limits", 1, 2), ("6 bar & no more\nx", 1, 0), ("a | b c", 1, 0), ("d", 1, 0),
        ("next", 2, 0), ("out", 2, 0), ("box", 2, 0),
    ]
    plain = parse("manual.docx", word(p("text"), styles=None, title="The  title"))
    assert plain.title == "The title" and plain.blocks == (Block("text"),), "no marks, no pages"
    assert parse("manual.docx", word(p("text"))).title == "manual"


def bomb(size: int) -> bytes:
    return word(p("x") + " " * size)


def test_a_zip_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadDocument, match="unpacks to 8 MiB"):
        parse("a.docx", bomb(8 << 20))
    monkeypatch.setattr(docx, "_MAX_RATIO", 10_000)
    assert parse("a.docx", bomb(8 << 20)).blocks == (Block("x"),), "the control: only its ratio was refused"
    monkeypatch.setattr(docx, "_MAX_MEMBER", 1 << 20)
    with pytest.raises(BadDocument, match="unpacks"):
        parse("a.docx", bomb(8 << 20))


def test_a_member_that_lies_about_its_size_is_not_unpacked_further(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(bomb(8 << 20))
    size = (8 << 20) + len(f"<w:document {W}><w:body></w:body></w:document>" + p("x"))
    for found in list(re.finditer(re.escape(size.to_bytes(4, "little")), data)):
        data[found.start() : found.end()] = (1000).to_bytes(4, "little")
    read: list[int] = []
    inner = zipfile.ZipExtFile.read

    def counted(self: zipfile.ZipExtFile, n: int | None = -1) -> bytes:
        part = inner(self, n)
        read.append(len(part))
        return part

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counted)
    with pytest.raises(BadDocument):
        parse("a.docx", bytes(data))
    assert 0 < sum(read) <= 4096


@pytest.mark.parametrize("declared", [
    '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>', '<!DOCTYPE x SYSTEM "file:///etc/passwd">',
])  # fmt: skip
def test_xml_may_declare_no_entities(declared: str) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("word/document.xml", f"{declared}<w:document {W}><w:body>{p('text')}</w:body></w:document>")
    with pytest.raises(BadDocument, match="document type"):
        parse("a.docx", out.getvalue())


def test_a_zip_of_too_many_parts_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = word(p("text"), **{f"part{n}": b"" for n in range(300)})
    assert parse("a.docx", data).blocks
    monkeypatch.setattr(docx, "_MAX_DIRECTORY", 10_000)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(BadDocument, match="too many parts"):
        parse("a.docx", data)


def test_a_cut_or_altered_word_document_is_one_error() -> None:
    whole = word(p("Some text, long enough.") * 50, title="t")
    for cut in range(0, len(whole), 37):
        with pytest.raises(BadDocument):
            parse("a.docx", whole[:cut])
    with pytest.raises(BadDocument, match="Word"):
        parse("a.docx", word("<w:p>"))
    encrypted = bytearray(whole)
    for found in list(re.finditer(b"PK\x03\x04|PK\x01\x02", whole)):
        encrypted[found.start() + (6 if found[0][2] == 3 else 8)] |= 1
    with pytest.raises(BadDocument, match="Word"):
        parse("a.docx", bytes(encrypted))


@given(st.data())
def test_any_change_of_a_word_document_is_read_or_refused(data: st.DataObject) -> None:
    whole = word(p("text"), title="t")
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 40)))
    try:
        parse("a.docx", whole[:start] + data.draw(st.binary(max_size=40)) + whole[end:])
    except BadDocument:
        return


PAGE = b"""<!DOCTYPE html><html><head><title> A
 page </title><style>p { content: "<p>style</p>" }</style><script>if (a < b) { "</p>" }</script></head>
<body><!-- <p>comment</p> --><h1>Pumps &amp; <i>hoses</i></h1>
<p>One&nbsp;two
<b>three</b><br>four &lt;five&gt; 1 < 2</p><ul><li>first<li data-x="a>b" title='c"d'>second</ul>
<table><tr><th>a</th><th>b</th></tr><tr><td>1<td>2</table>
<pre>x = 1
  y = 2</pre>last"""


def test_html_has_headings_paragraphs_items_and_rows() -> None:
    content = parse("page.html", PAGE)
    assert content.title == "A page"
    assert shown(content.blocks) == [
        ("Pumps & hoses", 3, 1), ("One two three", 4, 0),
        ("four <five> 1 < 2", 5, 0), ("first", 5, 0), ("second", 5, 0),
        ("a | b", 6, 0), ("1 | 2", 6, 0), ("x = 1\n  y = 2", 7, 0), ("last", 8, 0),
    ]
    assert parse("page.htm", b"<h1>Head</h1>text").title == "Head"


def test_html_is_read_in_its_encoding() -> None:
    page = '<meta charset="{}"><p>caf\xe9'
    for name in ("iso-8859-1", "windows-1252", "utf-8"):
        assert parse("a.html", page.format(name).encode(name)).blocks[0].text == "caf\xe9"
    for name in ("punycode", "unicode_escape", "zip", "nonsense"):  # no page is written in these
        assert parse("a.html", page.format(name).encode()).blocks[0].text == "caf\xe9"
    with pytest.raises(BadDocument, match="UTF-8"):
        parse("a.html", page.format("utf-8").encode("latin-1"))
    assert parse("a.txt", "caf\xe9".encode("utf-16")).blocks[0].text == "caf\xe9"


@pytest.mark.parametrize("part", [
    "<!--", "<![CDATA[", "<a ", '<a "', "<a '\"", "<a href='x", "</", "<", "&", "&#9", "<script>", "<p>", "x ",
    "</a", "<?", "<title>", "<pre>", "<td>", "\n", "<textarea>&lt;",
])  # fmt: skip
def test_megabytes_on_one_line_are_read(part: str) -> None:
    """A reader that goes back over what it has seen would not come to an end here: it needs 10^11 steps or more."""
    size = 10 << 20 if part == "x " else 1 << 20
    text = (part * (size // len(part)))[:size] + "</script></textarea><p>end"
    try:
        last = parse("a.html", text.encode()).blocks[-1].text
    except BadDocument:
        last = ""
    # An open comment or tag may hold all that follows.
    swallowed = ("<!--", "<a ", "</a", '<a "', "<a '\"", "<a href='x")
    assert last == "end" or part in swallowed


@given(st.text('<>/!-="\' \n&;#xptdrscriptle1', max_size=200) | st.text(max_size=100))
def test_any_html_is_read(text: str) -> None:
    try:
        content = parse("a.html", text.encode("utf-8", "ignore"))
    except BadDocument:
        return
    lines = text.count("\n") + 1
    assert all(block.text.strip() and 1 <= (block.line or 0) <= lines for block in content.blocks)


def test_rows_of_a_table_name_their_columns() -> None:
    csv = b'part,pressure,"said, of it"\r\nP-101,6 bar,"two\r\nlines"\r\n\r\nP-102,,x,extra\r\n'
    assert shown(parse("a.csv", csv).blocks) == [
        ("part: P-101; pressure: 6 bar; said, of it: two lines", 2, 0), ("part: P-102; said, of it: x; extra", 5, 0),
    ]
    assert shown(parse("a.tsv", b"1\t2\n3\t4\n").blocks) == [("1 | 2", 1, 0), ("3 | 4", 2, 0)]
    assert shown(parse("a.csv", b"a;b\n").blocks) == [("a | b", 1, 0)]
    with pytest.raises(BadDocument, match="table"):
        parse("a.csv", b'a,b\n"' + b"x" * 200_000)


@pytest.mark.parametrize("size", [1, 60_000])
def test_deep_nesting_is_read(size: int) -> None:
    assert parse("a.html", b"<div>" * size + b"<p>end" + b"</div>" * size).blocks == (Block("end", None, 1),)
    assert parse("a.docx", word("<w:x>" * size + p("end") + "</w:x>" * size)).blocks == (Block("end"),)


def test_tables_of_very_many_columns_are_read() -> None:
    names = ",".join(f"c{n}" for n in range(50_000))
    [block] = parse("a.csv", f"{names}\n{',' * 49_999}x\n".encode()).blocks
    assert block.text == "c49999: x"


CODE = b'''"""Doc."""
import os

@cached
def first(a):
    x = 1

    return x


class Pump:
    limit = 6

    async def start(self):
        pass

def last(): pass
'''


def test_code_is_cut_where_something_is_defined() -> None:
    assert shown(parse("a.py", CODE).blocks) == [
        ('"""Doc."""\nimport os', 1, 0), ("@cached", 4, 0), ("def first(a):", 5, 1), ("    x = 1", 6, 0),
        ("    return x", 8, 0), ("class Pump:", 11, 1), ("    limit = 6", 12, 0), ("async def start(self):", 14, 2),
        ("        pass", 15, 0), ("def last(): pass", 17, 1),
    ]
    rust = parse("a.rs", b"pub(crate) fn go<T>(t: T) {\n  t\n}\nimpl Pump {\n  pub fn stop() {}\n}\n").blocks
    assert [(block.text, block.level) for block in rust] == [
        ("pub(crate) fn go<T>(t: T) {", 1), ("  t\n}", 0), ("impl Pump {", 1), ("pub fn stop() {}", 2), ("}", 0),
    ]


@given(st.sampled_from(["a.csv", "a.py", "a.html", "a.docx", "a.sql"]), st.binary(max_size=300))
def test_any_bytes_of_any_kind_parse_or_are_refused(name: str, data: bytes) -> None:
    try:
        content = parse(name, data)
    except BadDocument:
        return
    assert content.blocks and all(block.text.strip() for block in content.blocks)
