"""Options that say which documents a question is asked of."""

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

if TYPE_CHECKING:
    from edge_client.scope import Scope
    from store.documents import Documents

__all__ = ["COLLECTION", "File", "Label", "Labels", "Since", "Until", "scope"]

Label = Literal["public", "internal", "local-only"]


class OneLabel(StrEnum):
    """A Label, as typer takes several."""

    PUBLIC = "public"
    INTERNAL = "internal"
    LOCAL_ONLY = "local-only"


COLLECTION: Final = typer.Option("--collection", "-c", help="Which set of documents.")
Labels = Annotated[list[OneLabel] | None, typer.Option("--label", help="Only documents of this label, or of these.")]
File = Annotated[str | None, typer.Option(help="Only this file or folder, or files like '*.pdf'.")]
Since = Annotated[str | None, typer.Option(help="Only files changed since this date, or 12h, 7d, 3w ago.")]
Until = Annotated[str | None, typer.Option(help="Only files changed up to this date.")]


async def scope(
    documents: "Documents", collection: str, labels: list[OneLabel] | None, file: str | None, since: str | None,
    until: str | None,
) -> "Scope":
    """Raises BadUse."""
    from edge_client.scope import narrowed

    chosen = [str(label) for label in labels or ()]
    return await narrowed(
        documents, collection=collection, labels=chosen, file=file, since=since, until=until, now=time.time()
    )
