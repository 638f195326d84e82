"""What the demo shows at its end: the way of one request, and what a search for its words found."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table


def trace_table(trace_id: str, spans: Sequence[dict[str, Any]]) -> Table:
    """Spans in order of their start, indented below their parents, with milliseconds from the first start."""
    table = Table(title=f"trace {trace_id}", title_justify="left")
    for title, justify in (
        ("span", "left"),
        ("where", "left"),
        ("starts", "right"),
        ("ms", "right"),
        ("bytes", "right"),
    ):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    parents = {span["span_id"]: span.get("parent_id", "") for span in spans}
    first = min(span["start_ms"] for span in spans)
    for span in sorted(spans, key=lambda span: span["start_ms"]):
        depth, parent = 0, span.get("parent_id", "")
        while parent in parents and depth < 12:
            depth, parent = depth + 1, parents[parent]
        counts = [value for name, value in span.get("attributes", {}).items() if "bytes" in name]
        table.add_row(
            "  " * depth + span["name"],
            span["role"],
            f"{span['start_ms'] - first:.0f}",
            f"{span['end_ms'] - span['start_ms']:.1f}",
            " / ".join(f"{count:,}" for count in counts),
        )
    return table


def canary_table(results: dict[str, Any], at_hop: int, on_disk: int) -> Table:
    control, found = results["control"], results["canaries"]
    table = Table(title="canaries: words of prompt, answer, headers, identity and documents", title_justify="left")
    for title in ("looked in", "for", "found", "the same search, where it must find"):
        table.add_column(title)
    table.add_row(
        f"all that crossed the hop, both sides: {control['captured_bytes']:,} bytes",
        f"{at_hop} words",
        f"[bold]{found['hop']}[/]",
        f"the same request in the clear: {control['plaintext_hits']}",
    )
    table.add_row(
        f"every file of edge, hop and gateway: {control['searched_on_disk']:,} bytes",
        f"{on_disk} words",
        f"[bold]{found['disk']}[/]",
        f"the documents themselves: {control['document_hits']}",
    )
    return table
