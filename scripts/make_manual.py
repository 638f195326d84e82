"""Makes examples/manual/pumps.pdf from examples/source/pumps.md: `.venv/bin/python scripts/make_manual.py [OUT]`.

The shipped manual has one volume as PDF, so that page numbers are real and answers can cite them. The same input gives
the same bytes (fixed date, built-in fonts), so a test can tell that the PDF and its source belong together.
"""

import sys
from datetime import UTC, datetime
from pathlib import Path

from fpdf import FPDF
from fpdf.enums import XPos, YPos

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "examples" / "source" / "pumps.md"
TARGET = ROOT / "examples" / "manual" / "pumps.pdf"
SIZES = {"# ": 22, "## ": 16, "### ": 12}  # headings, in points; running text is 11


class Page(FPDF):
    def footer(self) -> None:
        self.set_y(-15)
        self.set_font("Helvetica", size=9)
        self.cell(0, 8, f"Water Point Pumps - page {self.page_no()}", align="C")


def render(markdown: str) -> bytes:
    """The PDF of headings and paragraphs separated by blank lines; every `## ` chapter begins on a new page."""
    pdf = Page(format="A4")
    pdf.set_creation_date(datetime(2025, 1, 1, tzinfo=UTC))
    pdf.set_title("Water Point Pumps: Operation and Maintenance")
    pdf.set_producer("causeway")
    pdf.set_auto_page_break(auto=True, margin=20)
    pdf.set_margins(24, 22, 24)
    pdf.add_page()
    for block in markdown.strip().split("\n\n"):
        text = " ".join(block.split("\n"))
        mark = text.split(" ", 1)[0] + " "
        if mark in SIZES:
            if mark == "## " or pdf.get_y() > 240:
                pdf.add_page()
            pdf.ln(3)
            pdf.set_font("Helvetica", style="B", size=SIZES[mark])
            text = text[len(mark) :]
        else:
            pdf.set_font("Helvetica", size=11)
        pdf.multi_cell(0, SIZES.get(mark, 11) * 0.52, text, new_x=XPos.LMARGIN, new_y=YPos.NEXT)
        pdf.ln(2.5)
    return bytes(pdf.output())


def main() -> int:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    target.write_bytes(render(SOURCE.read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
