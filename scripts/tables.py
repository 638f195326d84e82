"""What the demo shows at its end: the way of one request, and what a search for its words found."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table


def trace_table(trace_id: str, spans: Sequence[dict[str, Any]]) -> Table:
    """Spans in order of their start, indented below their parents, with milliseconds from the first start."""
    table = Table(title=f"trace {trace_id}", title_justify="left")
    for title in ("span", "where", "starts at", "ms", "bytes in", "bytes out"):
        table.add_column(title, justify="left" if title in ("span", "where") else "right")
    parents = {span["span_id"]: span.get("parent_id", "") for span in spans}
    first = min(span["start_ms"] for span in spans)
    for span in sorted(spans, key=lambda span: span["start_ms"]):
        depth, parent = 0, span.get("parent_id", "")
        while parent in parents and depth < 12:
            depth, parent = depth + 1, parents[parent]
        attributes = span.get("attributes", {})
        sizes = [attributes.get(f"causeway.bytes.{way}") for way in ("in", "out")]
        table.add_row(
            "  " * depth + f"{span['name']} {attributes.get('causeway.route', '')}".rstrip(),
            span["role"],
            f"{span['start_ms'] - first:.0f}",
            f"{span['end_ms'] - span['start_ms']:.1f}",
            *("" if size is None else f"{size:,}" for size in sizes),
        )
    return table


def canary_table(results: dict[str, Any], at_hop: int, on_disk: int) -> Table:
    control, found = results["control"], results["canaries"]
    table = Table(title="canaries: words of prompt, answer, headers, identity and documents", title_justify="left")
    for title in ("looked in", "for", "found", "the same search, where it must find"):
        table.add_column(title)
    table.add_row(
        f"what crossed the hop, both sides: {control['captured_bytes']:,} bytes",
        f"{at_hop} words",
        f"[bold]{found['hop']}[/]",
        f"the same in the clear, by radio: {control['plaintext_hits']}",
    )
    table.add_row(
        f"every file of edge, hop and gateway: {control['searched_on_disk']:,} bytes",
        f"{on_disk} words",
        f"[bold]{found['disk']}[/]",
        f"the documents themselves: {control['document_hits']}",
    )
    return table
