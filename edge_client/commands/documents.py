"""`edge ingest`, `edge search` and `edge documents`."""

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Final

import typer

from edge_client.commands.reembed import reembed
from edge_client.commands.terminal import JSON, Exit, note, progress, run, show
from edge_client.commands.within import COLLECTION, File, Label, Labels, Since, Until, scope

if TYPE_CHECKING:
    from edge_client.app import App
    from edge_client.ingest import Ingest, Outcome
    from store.documents import Document, Documents

_WHAT: Final = typer.Argument(help="A document as the list names it, or a file or folder.")
documents = typer.Typer(
    help="Documents in the store, and their labels.", rich_markup_mode=None, invoke_without_command=True
)


def ingest(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Files and folders: text, Markdown, PDF, Word, HTML, CSV, source code.")
    ] = None,
    collection: Annotated[str, COLLECTION] = "default",
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="The files hold lines of JSON with id, title, text; none: stdin.")
    ] = False,
    label: Annotated[
        Label | None, typer.Option(help="Who may see them; local-only never leaves this device. A folder keeps it.")
    ] = None,
    keep_deleted: Annotated[
        bool, typer.Option("--keep-deleted", help="Keep documents whose file is no longer in the folder.")
    ] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Put documents into the encrypted store. Known content is skipped, a broken file reported.

    A label from before stays where it is stricter. Of a folder that was ingested before, documents whose file is gone
    are forgotten.
    """

    async def work() -> None:
        from edge_client.app import App
        from edge_client.config import Config
        from edge_client.errors import BadUse

        if not paths and not jsonl:
            raise BadUse("nothing to ingest", hint="name files or folders")
        async with App.open(Config.load(), store="create") as app:
            taken = await take_in(app, paths or [], collection, label, jsonl=jsonl, keep_deleted=keep_deleted)
        if as_json:
            show(taken.object())
        else:
            print(taken)
        if kept := sum(label is not None and one.label != label for one in taken.done):
            note(f"{kept} keep a stricter label from before; `edge documents label` changes it")
        if taken.failed:
            raise Exit(3)

    run(work, as_json=as_json)


@dataclass
class Taken:
    """What became of the files or records that were given."""

    done: "list[Outcome]" = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)  # by ending
    forgotten: list[str] = field(default_factory=list)  # whose files are gone from a folder

    @property
    def counts(self) -> dict[str, int]:
        added = [outcome for outcome in self.done if outcome.state == "added"]
        return {
            "added": len(added), "unchanged": len(self.done) - len(added), "failed": len(self.failed),
            "chunks": sum(outcome.chunks for outcome in added), "skipped": self.skipped.total(),
            "forgotten": len(self.forgotten),
        }

    def object(self) -> dict[str, Any]:
        documents = [{"source": o.source, "state": o.state, "chunks": o.chunks, "label": o.label} for o in self.done]
        lists = {"documents": documents, "failures": self.failed, "forgotten_files": self.forgotten}
        return {**self.counts, "skipped_kinds": dict(self.skipped), **lists}

    def __str__(self) -> str:
        counts, kinds = self.counts, ", ".join(kind or "no ending" for kind in sorted(self.skipped))
        return (
            f"{counts['added']} added ({counts['chunks']} passages), {counts['unchanged']} unchanged, "
            f"{counts['failed']} failed" + (f", {counts['skipped']} skipped ({kinds})" if kinds else "")
            + (f", {counts['forgotten']} forgotten" if self.forgotten else "")
        )


async def take_in(
    app: "App", paths: list[Path], collection: str = "default", label: str | None = None, *, jsonl: bool = False,
    keep_deleted: bool = False,
) -> Taken:
    """Reads files and folders, or lines of JSON, into the store, with progress. A broken one is told and skipped.

    Documents of a folder whose files are gone are forgotten, and told, unless `keep_deleted`.
    """
    from edge_client.errors import BadUse
    from edge_client.folders import find_files
    from edge_client.ingest import Ingest

    taken = Taken()

    def fail(source: str, error: BadUse) -> None:
        note(f"{source}: {error}" + (f" ({error.hint})" if error.hint else ""))
        taken.failed.append({"source": source, "error": error.code, "message": str(error)})

    with progress() as tell:
        ingester = Ingest(app.documents, app.embedder(lambda n, of: tell("preparing the embedder", n, of)))
        if jsonl:
            for path in paths or [Path("-")]:
                await _records(ingester, path, collection, label, tell, taken.done.append, fail)
            return taken
        for folder in _folders(paths) if label is not None else []:
            await ingester.folder(folder, str(label))
        def skip(path: Path) -> None:
            taken.skipped[path.suffix.lower()] += 1

        within_each = [list(find_files([path], skip)) for path in paths]
        found = [path for files in within_each for path in files]
        for number, path in enumerate(found):
            tell(path.name, number, len(found))
            within = partial(_tell_within, tell, path.name, number, len(found))
            try:
                taken.done.append(await ingester.file(path, collection=collection, label=label, progress=within))
            except BadUse as error:
                fail(str(path), error)
        tell("done", len(found), len(found))
        # A folder with nothing to ingest may be one whose medium is not mounted: nothing is forgotten.
        full = [path for path, files in zip(paths, within_each, strict=True) if files and not keep_deleted]
        for folder in _folders(full):
            gone, unclear = await ingester.forget_gone(folder, collection=collection)
            taken.forgotten += gone
            for source in gone:
                note(f"{source}: its file is gone, forgotten")
            if unclear:
                note(f"{folder}: {len(unclear)} kept whose files are missing; is all of it mounted?")
    return taken


def _tell_within(
    tell: Callable[[str, int, int], None], name: str, number: int, files: int, done: int, pieces: int
) -> None:
    tell(f"{name}, {done} of {pieces} passages" if done else name, number, files)


def _folders(paths: "list[Path]") -> list[str]:
    from edge_client.folders import is_folder

    return [str(path.resolve()) for path in paths if is_folder(path)]


async def _records(
    ingester: "Ingest", path: Path, collection: str, label: str | None, tell: Callable[[str, int, int], None],
    add: "Callable[[Outcome], None]", fail: Callable[[str, Any], None],
) -> None:
    from edge_client.errors import BadUse
    from edge_client.ingest import record_lines

    name = "standard input" if str(path) == "-" else str(path)
    with _opened(path) as lines:
        for number, record in record_lines(lines):
            tell(f"{name} line {number}", number, 0)
            try:
                if isinstance(record, BadUse):
                    raise record
                add(await ingester.record(record, collection=collection, label=label))
            except BadUse as error:
                fail(f"{name} line {number}", error)


def search(
    query: Annotated[str | None, typer.Argument(help="The question; with --jsonl a file, none: stdin.")] = None,
    collection: Annotated[str, COLLECTION] = "default",
    top: Annotated[int, typer.Option(min=1, max=1000, help="How many hits.")] = 5,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Lines of JSON with id, text in; id, hits out, in the same order.")
    ] = False,
    label: Labels = None, file: File = None, since: Since = None, until: Until = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Find passages by meaning and by words."""

    async def work() -> None:
        from edge_client.app import App
        from edge_client.config import Config
        from edge_client.errors import EmptyPrompt

        if not jsonl and not (query or "").strip():
            raise EmptyPrompt
        async with App.open(Config.load(), store="if present") as app:
            # Before anything is read: no store, no search.
            within = await scope(app.documents, collection, label, file, since, until)
            retrieval = app.retrieval()
            if jsonl:
                await _lines(partial(retrieval.documents, within=within, top=top), Path(query or "-"))
                return
            passages = await retrieval.passages(query or "", within=within, top=top)
        if as_json:
            show({"hits": [{
                "document": p.document, "source": p.source, "page": p.page, "line": p.line, "text": p.text,
                "label": p.label, "similarity": round(p.similarity, 4),
            } for p in passages]})
            return
        for number, passage in enumerate(passages, 1):
            print(f"{number}. {passage.place} (similarity {passage.similarity:.2f})")
            print("   " + passage.text.replace("\n", "\n   "))
        if not passages:
            narrow = " of what was asked for by --label, --file, --since, --until"
            some = narrow if (label, file, since, until) != (None,) * 4 else ""
            note(f"the collection {collection} holds nothing{some}; `edge documents` lists what there is")

    run(work, as_json=as_json)


@documents.callback()
def listing(
    context: typer.Context, collection: Annotated[str | None, COLLECTION] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """List documents with their labels."""
    if context.invoked_subcommand is not None:
        return

    async def work() -> None:
        from edge_client.app import App
        from edge_client.config import Config

        found: list[Document] = []
        folders: dict[str, str] = {}
        async with App.open(Config.load(), store="if present") as app:
            if app.has_store:
                found, folders = await app.documents.list(collection), await app.documents.folder_labels()
        if as_json:
            show({"documents": [_object(document) for document in found], "folders": folders})
            return
        for folder, label in folders.items():
            print(f"{label:10}  all in {folder}")
        for document in found:
            print(f"{document.label:10}  {document.chunks:5} passages  {document.source}  ({document.title})")
        if not found:
            note("there are no documents; `edge ingest FOLDER` adds some")

    run(work, as_json=as_json)


@documents.command()
def forget(
    what: Annotated[str, _WHAT], collection: Annotated[str | None, COLLECTION] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Remove a document, or all of a folder. Everything made from it leaves the store; files stay."""

    async def work() -> None:
        from edge_client.app import App
        from edge_client.config import Config

        async with App.open(Config.load(), store="if present") as app:
            found = await _chosen(app.documents, what, collection)
            for document in found:
                await app.documents.delete(document.id)
        _say("forgotten", found, as_json)

    run(work, as_json=as_json)


@documents.command("label")
def set_label(
    what: Annotated[str, _WHAT], label: Annotated[Label, typer.Argument(help="Looser or stricter than before.")],
    collection: Annotated[str | None, COLLECTION] = None, as_json: Annotated[bool, JSON] = False,
) -> None:
    """Say who may see a document, or a folder. For all it holds now and later; local-only never leaves this device."""

    async def work() -> None:
        from dataclasses import replace

        from edge_client.app import App
        from edge_client.config import Config
        from edge_client.ingest import relabel

        async with App.open(Config.load(), store="if present") as app:
            folder = next(iter(_folders([Path(what)])), None)
            found = await _chosen(app.documents, what, collection, or_none=folder is not None)
            await relabel(app.documents, found, label, folder=folder)
        _say(f"now {label}", [replace(document, label=label) for document in found], as_json)

    run(work, as_json=as_json)


documents.command()(reembed)


async def _chosen(
    documents: "Documents", what: str, collection: str | None, *, or_none: bool = False
) -> "list[Document]":
    """The document of that name or file, or all below that folder. Raises BadUse if there is none."""
    from edge_client.errors import BadUse

    known, path = await documents.list(collection), _resolved(what)
    found = [document for document in known if document.source in (what, str(path))]
    found = found or [document for document in known if path in Path(document.source).parents]
    if not found and not or_none:
        raise BadUse("there is no such document", hint="`edge documents` lists them")
    if len({document.collection for document in found if document.source == what != str(path)}) > 1:
        raise BadUse("several collections have a document of that name", hint="name one with --collection")
    return found


def _resolved(what: str) -> Path:
    return Path(os.path.realpath(what))  # takes anything, also links that go round in circles


def _say(done: str, found: "list[Document]", as_json: bool) -> None:
    if as_json:
        show({"documents": [_object(document) for document in found]})
        return
    for document in found:
        print(f"{done}: {document.source}")


def _object(document: "Document") -> dict[str, Any]:
    return {
        "id": document.id, "collection": document.collection, "source": document.source, "title": document.title,
        "label": document.label, "chunks": document.chunks,
    }


async def _lines(ask: "Callable[[str], Awaitable[list[tuple[str, float]]]]", path: Path) -> None:
    from edge_client.errors import BadUse
    from edge_client.ingest import query_lines

    bad = 0
    with _opened(path) as lines:
        for number, query in query_lines(lines):
            if isinstance(query, BadUse):
                bad += 1
                show({"error": {"line": number, "code": query.code, "message": str(query)}})
                continue
            hits = await ask(query[1])
            show({"id": query[0], "hits": [{"doc": doc, "score": round(score, 6)} for doc, score in hits]})
    if bad:
        note(f"{bad} line(s) could not be read")
        raise Exit(3)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    from edge_client.errors import BadUse

    if str(path) == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = path.open("rb")
    except OSError as error:
        hint = "with --jsonl the argument is a file, one JSON object a line; without one, standard input is read"
        raise BadUse(f"cannot read {path}: {error.strerror}", hint=hint) from None
    with stream:
        yield stream
