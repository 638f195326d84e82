"""Another embedder for a collection: its new vectors are gathered beside the old ones, then take their place at once.

Until then every search goes by the old ones, and documents come and go as ever. What was gathered stays when the work
is cut short, and whoever takes it up with the same embedder goes on there. For a passage of 384 dimensions it needs 0.9
KB of disk, which the file keeps for what comes later, and 1.9 KB more in the log while vectors are replaced.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

from store.database import Connection, Database
from store.errors import ModelMismatch, StoreConflict

if TYPE_CHECKING:
    from store.vectors import FloatArray

__all__ = ["Embed", "Progress", "Reembedding", "outdated", "reembed"]

Embed = Callable[[Sequence[str]], Awaitable["FloatArray"]]
Progress = Callable[[str, int, int], None]

_AT_ONCE: Final = 16  # passages, a second of work, of which a kill loses no more
# The ids of its passages, from indices alone: no text is decrypted for them.
_IDS: Final = (
    "SELECT k.id FROM documents d CROSS JOIN chunks k ON k.document_id = d.id WHERE d.collection_id = :collection"
)
_REPLACE: Final = (
    "UPDATE vectors SET value = (SELECT n.value FROM new_vectors n WHERE n.chunk_id = vectors.chunk_id)"  # noqa: S608
    f" WHERE chunk_id IN ({_IDS})"
)
_DROP: Final = f"DELETE FROM new_vectors WHERE chunk_id IN ({_IDS})"  # noqa: S608
# Documents in the order of their ids, which is that of their passages: nothing is sorted, and none is read twice.
_MISSING: Final = (
    "SELECT k.id, k.text FROM reembeddings r CROSS JOIN documents d NOT INDEXED ON d.id >= r.document"
    " CROSS JOIN chunks k ON k.document_id = d.id AND k.id > r.up_to"
    " WHERE r.collection_id = :collection AND d.collection_id = :collection ORDER BY d.id, k.id LIMIT :count"
)


class Reembedding:
    """The way of one collection to the embedder `model_id`. All methods raise what `Database.run` raises.

    StoreConflict from any but `begin`: somebody has begun another one, to a third embedder.
    """

    def __init__(self, database: Database, *, collection: str, model_id: str) -> None:
        self._database = database
        self._collection = collection
        self._model_id = model_id

    async def begin(self) -> tuple[int, int] | None:
        """(passages that have a new vector, passages in all); None if there is nothing to do.

        What was gathered for another embedder is dropped.
        """

        def work(connection: Connection) -> tuple[int, int] | None:
            id, model_id = self._now(connection)
            if id is None:
                return None
            row = connection.execute("SELECT model_id FROM reembeddings WHERE collection_id = ?", (id,)).fetchone()
            if row is not None and (row[0] != self._model_id or model_id == self._model_id):
                _drop(connection, id)
                row = None
            if model_id == self._model_id:
                return None
            if row is None:
                connection.execute(
                    "INSERT INTO reembeddings (collection_id, model_id) VALUES (?, ?)", (id, self._model_id)
                )
            counted = connection.execute(
                "SELECT (SELECT count(*) FROM (" + _IDS + " AND k.id <= r.up_to)),"  # noqa: S608
                " (SELECT ifnull(sum(chunks), 0) FROM documents WHERE collection_id = :collection)"
                " FROM reembeddings r WHERE r.collection_id = :collection", {"collection": id},
            ).fetchone()
            assert counted is not None
            return int(counted[0]), int(counted[1])

        return await self._database.run(work)

    async def missing(self, count: int = _AT_ONCE) -> list[tuple[int, str]]:
        """(id, text) of the next passages without a new vector, at most `count`; none if all have one."""

        def work(connection: Connection) -> list[tuple[int, str]]:
            under_way = self._under_way(connection)
            return [] if under_way is None else _missing(connection, under_way[0], count)

        return await self._database.run(work, read_only=True)

    async def keep(self, ids: Sequence[int], vectors: "FloatArray") -> None:
        """Keeps the vectors (float32, length 1) of the passages that `missing` gave, all of them, in that order.

        Those of passages that are gone by now are left out. Raises ModelMismatch for another dimension than before,
        StoreMisuse for vectors that are not of length 1.
        """
        from store import vectors as coding

        rows = coding.checked_rows(vectors, len(ids))
        values = coding.encode_rows(rows)

        def work(connection: Connection) -> None:
            under_way = self._under_way(connection)
            if under_way is None or not ids:
                return
            id, dimension = under_way
            if any(missing < min(ids) for missing, _ in _missing(connection, id, 1)):
                return  # begun anew meanwhile: what comes first is not there any more
            if dimension not in (None, rows.shape[1]):
                raise ModelMismatch("the embedder gave vectors of different dimensions")
            connection.execute(
                "UPDATE reembeddings SET up_to = max(up_to, :last), dimension = :dimension, document = max(document,"
                " ifnull((SELECT document_id FROM chunks WHERE id = :last), 0)) WHERE collection_id = :id",
                {"last": max(ids), "dimension": rows.shape[1], "id": id},
            )
            connection.executemany(
                "INSERT OR REPLACE INTO new_vectors SELECT id, ? FROM chunks WHERE id = ?",
                list(zip(values, ids, strict=True)),
            )

        await self._database.run(work)

    async def finish(self) -> bool:
        """Puts the new vectors in the place of the old ones, in one transaction; False if a passage has none yet.

        Other writers wait meanwhile, some seconds for 100,000 passages, and searches go on by the old ones.
        """

        def work(connection: Connection) -> bool:
            under_way = self._under_way(connection)
            if under_way is None:
                return True
            if _missing(connection, under_way[0], 1):
                return False
            _replace(connection, *under_way, self._model_id)
            return True

        return await self._database.run(work)

    def _now(self, connection: Connection) -> tuple[int | None, str]:
        row = connection.execute("SELECT id, model_id FROM collections WHERE name = ?", (self._collection,)).fetchone()
        return (None, "") if row is None else (int(row[0]), str(row[1]))

    def _under_way(self, connection: Connection) -> tuple[int, int | None] | None:
        """(collection id, dimension); None where the embedder is this one already."""
        id, model_id = self._now(connection)
        if id is None or model_id == self._model_id:
            return None
        row = connection.execute(
            "SELECT dimension FROM reembeddings WHERE collection_id = ? AND model_id = ?", (id, self._model_id)
        ).fetchone()
        if row is None:
            raise StoreConflict("the collection is being re-embedded for another model by now")
        return id, row[0]


async def outdated(database: Database, model_id: str) -> list[tuple[str, int]]:
    """(name, passages) of the collections whose documents are of another embedder than this."""
    statement = (
        "SELECT c.name, sum(d.chunks) FROM collections c JOIN documents d ON d.collection_id = c.id"
        " WHERE c.model_id <> ? AND d.chunks > 0 GROUP BY c.id ORDER BY c.name"
    )

    def work(connection: Connection) -> list[tuple[str, int]]:
        return [(str(name), int(chunks)) for name, chunks in connection.execute(statement, (model_id,))]

    return await database.run(work, read_only=True)


async def reembed(
    database: Database, embed: Embed, *, collection: str, model_id: str,
    progress: Progress = lambda step, done, total: None,
) -> int:
    """Embeds all passages of the collection anew, and has searches go by that; how many there are, 0 if nothing was to
    do.

    `embed` gives a row (float32, length 1) for each text. `progress` is told the step ("embedding", "replacing"), how
    many passages have a new vector, and how many there are. Raises as `Reembedding`, and what `embed` raises: then
    everything is as before, and calling this again goes on where it was.
    """
    work = Reembedding(database, collection=collection, model_id=model_id)
    begun = await work.begin()
    if begun is None:
        return 0
    done, total = begun
    while True:
        progress("embedding", done, total)
        passages = await work.missing()
        if passages:
            await work.keep([id for id, _ in passages], await embed([text for _, text in passages]))
            done += len(passages)
            total = max(total, done)
            continue
        progress("replacing", done, total)
        if await work.finish():  # unless a document was added in between
            return done


def _missing(connection: Connection, collection_id: int, count: int) -> list[tuple[int, str]]:
    found = connection.execute(_MISSING, {"collection": collection_id, "count": count})
    return [(int(id), str(text)) for id, text in found]


def _replace(connection: Connection, collection_id: int, dimension: int | None, model_id: str) -> None:
    from store.codes import make_codes

    connection.execute(_REPLACE, {"collection": collection_id})
    connection.execute("DELETE FROM codes WHERE collection_id = ?", (collection_id,))
    # The index in memory of any process goes by model and dimension.
    connection.execute(
        "UPDATE collections SET model_id = ?, dimension = ifnull(?, dimension) WHERE id = ?",
        (model_id, dimension, collection_id),
    )
    if dimension is not None:
        make_codes(connection, collection_id, dimension)
    _drop(connection, collection_id)


def _drop(connection: Connection, collection_id: int) -> None:
    connection.execute(_DROP, {"collection": collection_id})
    connection.execute("DELETE FROM reembeddings WHERE collection_id = ?", (collection_id,))
