"""Counts source lines per package against the budget: small is a feature, and growth should be a decision.

Counted are lines of Python that hold code; blank lines, comments and docstrings are not, tests never are. Used by
`scripts/test` (which prints the table) and by the architecture tests.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUDGET = {  # what has a budget of its own does not count in its parent's
    "transport": 4990,
    "transport/links": 4400,
    "store": 2600,
    "edge_client": 5000,
    "edge_client/api": 1100,
    "edge_client/commands": 2350,
    "edge_client/engine": 950,
    "relay": 6800,
    "relay/gateway/anomaly": 900,
    "relay/gateway/audit": 350,
    "relay/gateway/checks": 1250,
    "relay/gateway/identity": 3890,
    "relay/gateway/inspection": 550,
    "relay/gateway/policy": 600,
    "relay/gateway/quota": 800,
    "relay/gateway/taps": 540,
    "relay/gateway/upstream": 1700,
    "relay/sim": 1300,
}
_LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENCODING}


def code_lines(source: str) -> int:
    """Number of lines that hold at least one token of code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _LAYOUT and token.type != tokenize.ENDMARKER:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                lines.difference_update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


def count() -> dict[str, int]:
    """Lines of code per entry of the budget."""
    lines = dict.fromkeys(BUDGET, 0)
    for path in (path for package in BUDGET if "/" not in package for path in sorted((ROOT / package).rglob("*.py"))):
        within = [name for name in BUDGET if path.is_relative_to(ROOT / name)]
        lines[max(within, key=len)] += code_lines(path.read_text(encoding="utf-8"))
    return lines


def main() -> int:
    over = []
    for package, lines in count().items():
        print(f"  {package:16} {lines:5} of {BUDGET[package]:5} lines")
        if lines > BUDGET[package]:
            over.append(package)
    if over:
        print(f"over budget: {', '.join(over)}; delete something, or write an ADR that says why")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
