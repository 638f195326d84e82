"""HTML to blocks: headings, paragraphs, list items, table rows. Linear in its length, whatever the markup.

Not a parser of HTML but a reader of its text. The standard library's parser goes back over unclosed constructs again
and again, so that a page made for it takes hours; this one never looks at a character more than a few times.
"""

import html
import re
from typing import Final

from edge_client.chunking import Block, Content

__all__ = ["read_html"]

_NAME: Final = re.compile(r"/?[a-zA-Z][a-zA-Z0-9-]{0,30}")
_TAG_END: Final = re.compile("[>\"']")
# Their content is no text, or text that nobody sees.
_SILENT: Final = {
    name: re.compile(f"</{name}", re.IGNORECASE)
    for name in ("script", "style", "template", "svg", "iframe", "noscript", "object", "textarea", "select")
}
_WITHIN_LINES: Final = (
    "a abbr b bdi bdo big cite code data del dfn em font i img ins kbd label mark nobr q s samp small span strike"
    " strong sub sup time tt u var wbr"
)
_INLINE: Final = frozenset(_WITHIN_LINES.split())
_CELLS: Final = frozenset({"td", "th"})
_ENCODING: Final = re.compile(rb"charset\s{0,8}=\s{0,8}[\"']?\s{0,8}([a-zA-Z0-9_:-]{2,20})")
_KNOWN_ENCODING: Final = re.compile(r"(?i)(?:iso-?8859|windows|cp|koi8|us-ascii|utf-?16|gb|big5|euc|shift).{0,12}")


def encoding_of(data: bytes) -> str:
    """What the page says of itself at its beginning, if that is an encoding of text; else UTF-8."""
    found = _ENCODING.search(data[:2048])
    name = found[1].decode("ascii") if found else ""
    return name if _KNOWN_ENCODING.fullmatch(name) else "utf-8-sig"


def read_html(stem: str, text: str) -> Content:
    """The page's title (or its first heading, or `stem`) and its blocks with their lines."""
    reader = _Reader(text)
    reader.read()
    first = next((block.text for block in reader.blocks if block.level == 1), "")
    return Content(reader.title or first or stem, tuple(reader.blocks))


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line, self._counted = 1, 0
        self._held: list[str] = []
        self._said = False  # whether anything held is more than space
        self._start = 1
        self._level = 0
        self._pre = self._in_title = False
        self._unclosed: set[str] = set()  # quotes of which no further one comes
        self.title = ""
        self.blocks: list[Block] = []

    def read(self) -> None:
        while self._at < len(self._text):
            opening = self._text.find("<", self._at)
            end = len(self._text) if opening < 0 else opening
            if end > self._at:
                self._say(self._text[self._at : end])
            self._at = end
            if opening >= 0:
                self._markup()
        self._flush()

    def _markup(self) -> None:
        """Goes past what begins with `<`."""
        text, at = self._text, self._at
        if text.startswith("<!--", at):
            self._past("-->", at + 4)
        elif text.startswith(("<!", "<?"), at):
            self._past(">", at + 2)
        elif name := _NAME.match(text, at + 1):
            self._at = self._tag_end(name.end())
            element = name[0].lower()
            closing = _SILENT.get(element)
            if closing is not None and text[self._at - 2 : self._at] != "/>":
                found = closing.search(text, self._at)
                self._at = found.start() if found else len(text)
            self._tag(element)
        else:
            self._say("<")
            self._at = at + 1

    def _past(self, mark: str, start: int) -> None:
        found = self._text.find(mark, start)
        self._at = len(self._text) if found < 0 else found + len(mark)

    def _tag_end(self, at: int) -> int:
        """The place after the `>` that is in no attribute's value."""
        while found := _TAG_END.search(self._text, at):
            at = found.end()
            if found[0] == ">":
                return at
            if found[0] not in self._unclosed:
                closing = self._text.find(found[0], at)
                if closing < 0:
                    self._unclosed.add(found[0])
                else:
                    at = closing + 1
        return len(self._text)

    def _tag(self, element: str) -> None:
        name = element.removeprefix("/")
        if name in _INLINE:
            return
        if name in _CELLS:
            self._held.append(" | " if element == name and self._said else " ")
            return
        if name == "br" and (self._level or self._in_title):
            self._held.append(" ")
            return
        self._flush()
        self._pre = (name == "pre" and element == name) or (self._pre and name == "br")
        self._in_title = name == "title" and element == name and not self.title
        if len(name) == 2 and name[0] == "h" and name[1] in "123456":
            self._level = int(name[1]) if element == name else 0

    def _say(self, part: str) -> None:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        if not self._held:
            self._start = self._line + len(part[: len(part) - len(part.lstrip())].split("\n")) - 1
            part = part if self._pre else part.lstrip()
        if part:
            try:
                part = html.unescape(part)
            except ValueError:  # a number of thousands of digits
                part = part.replace("&", " ")
            self._said = self._said or not part.isspace()
            self._held.append(part if self._pre else re.sub(r"[^\S\xa0]+", " ", part))

    def _flush(self) -> None:
        text = "".join(self._held).replace("\xa0", " ").replace("\0", "")
        self._held, self._said = [], False
        text = text.strip("\n").rstrip() if self._pre else " ".join(text.split())
        if not text.strip(" |\n"):
            return
        if self._in_title:
            self.title = " ".join(text.split())[:200]
        else:
            self.blocks.append(Block(" ".join(text.split()) if self._level else text, None, self._start, self._level))
