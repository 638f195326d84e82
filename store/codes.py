"""The codes of a collection in memory: which passages may be near, and which documents they belong to.

A scan over float rows goes through the page cipher and is twelve times slower than memory; the code of a passage is 144
bytes for 384 dimensions and stays here. Codes only pick candidates: the order comes from the float16 rows.
"""

import itertools
from typing import Final

import numpy as np
import numpy.typing as npt

from store.database import Connection
from store.vectors import PLANES, FloatArray, encode_codes, fetch_rows

__all__ = ["CodeIndex", "Mask", "make_codes"]

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_BLOCK: Final = 32_768  # passages whose words and distances fit the second-level cache
_UNPACKED: Final = 8_192  # passages, a byte a bit
_READ_AT_ONCE: Final = 100  # documents, so that reading takes no more memory than what is kept
_BY_DISTANCE: Final = 4_000  # passages that are looked at again with the question as it is, not its signs alone ...
_BY_DISTANCE_SHARE: Final = 80  # ... or one in so many: where more are alike, distances tell them apart less well
_BY_SIGNS: Final = 12  # of these, for each one wanted, by all bits


class CodeIndex:
    """The codes of one collection in memory. Belongs to the owner thread of its database.

    Takes 144 bytes a passage at 384 dimensions and 24 a document. `refresh` inside a transaction makes it equal to what
    that transaction sees, whichever process wrote it: only what came is read, and what went is dropped.
    """

    def __init__(self, collection_id: int, dimension: int) -> None:
        self._collection_id = collection_id
        self.dimension = dimension
        self._plane_len = (dimension + 7) // 8  # as stored; here filled up to whole words
        self._words = (self._plane_len + 7) // 8
        self._clear()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _clear(self) -> None:
        self._added, self._removed = -1, -1
        self.documents: Ints = np.empty(0, np.int64)  # ascending, and so are
        self._first: Ints = np.empty(0, np.int64)  # the ids of their first passages
        self._ends: Ints = np.empty(0, np.int64)  # where in the columns the document's codes end
        # A column for each 64 bits, so that one operation works on neighbours in memory; there may be room left.
        self._columns = np.empty((PLANES * self._words, 0), np.uint64)

    def refresh(self, connection: Connection, *, added: int, removed: int) -> None:
        """Reads what is missing; `added` and `removed` are the collection's counters in this transaction."""
        if removed != self._removed and len(self.documents):
            gone = connection.execute(
                "SELECT document_id FROM removals WHERE collection_id = ? AND removed > ?",
                (self._collection_id, self._removed),
            ).fetchall()
            if len(gone) == removed - self._removed:
                self._drop(np.array(gone, np.int64).ravel())
            else:  # so many that the first ones are not listed any more
                self._clear()
        self._removed = removed
        if added != self._added:
            self._read(connection)
        self._added = added

    def _read(self, connection: Connection) -> None:
        since = (self._collection_id, int(self.documents[-1]) if len(self.documents) else 0)
        start, size = len(self), PLANES * self._plane_len
        expected = "SELECT ifnull(sum(chunks), 0) FROM documents WHERE collection_id = ? AND id > ?"
        for (chunks,) in connection.execute(expected, since):
            self._reserve(start + chunks, start)
        rows = iter(connection.execute(
            "SELECT document_id, first_chunk, code FROM codes WHERE collection_id = ? AND document_id > ?"
            " ORDER BY document_id", since,
        ))
        new = [np.empty((3, 0), np.int64)]
        while part := list(itertools.islice(rows, _READ_AT_ONCE)):
            documents, first, codes = zip(*part, strict=True)
            words = self._as_words(b"".join(codes))
            self._reserve(start + len(words), start)
            self._columns[:, start : start + len(words)] = words.T
            start += len(words)
            new.append(np.array([documents, first, [len(code) // size for code in codes]], np.int64))
        ids, chunks, lengths = np.concatenate(new, axis=1)
        self._ends = np.concatenate([self._ends, len(self) + np.cumsum(lengths)])
        self.documents = np.concatenate([self.documents, ids])
        self._first = np.concatenate([self._first, chunks])

    def _reserve(self, size: int, used: int) -> None:
        """Makes room, and more than is needed where it grows, or each new document would copy all codes."""
        if size > self._columns.shape[1]:
            columns = np.empty((len(self._columns), size + (size // 8 if used else 0)), np.uint64)
            columns[:, :used] = self._columns[:, :used]
            self._columns = columns

    def _drop(self, documents: Ints) -> None:
        stays = ~np.isin(self.documents, documents)
        count, kept, lengths = len(self), self.of_documents(stays), self._lengths()[stays]
        self.documents, self._first, self._ends = self.documents[stays], self._first[stays], np.cumsum(lengths)
        for column in self._columns:
            column[: len(self)] = column[:count][kept]

    @property
    def span(self) -> tuple[int, int]:
        """The first and the last id of its passages; those of other collections may stand between. (1, 0) for none."""
        if not len(self):
            return 1, 0
        return int(self._first[0]), int(self._first[-1] + self._lengths()[-1]) - 1

    def _lengths(self) -> Ints:
        return np.diff(self._ends, prepend=0)

    def of_documents(self, chosen: Mask) -> Mask:
        """Which passages belong to the chosen documents."""
        return np.repeat(chosen, self._lengths())

    def holders(self, ids: Ints) -> Ints:
        """Where in `documents` the document of each passage stands; -1 for a passage that is not of this collection."""
        if not len(self.documents):
            return np.full(len(ids), -1)
        places = np.searchsorted(self._first, ids, "right") - 1
        return np.where((places >= 0) & (ids < (self._first + self._lengths())[places]), places, -1)

    def nearest(self, vector: FloatArray, count: int, among: Mask | None = None) -> list[int]:
        """Ids of the `count` passages that are nearest by their codes, best first, ties by id: of thousands that are by
        Hamming distance the best by their signs, of these the best by all bits.

        `among`: whether each passage is looked at. What they leave is all there is where it is less than `count`.
        """
        distances = self._distances(vector)
        if among is not None:
            distances[~among] = self.dimension + 1
        # All up to the bound, so that which of several equals get in depends on nothing else.
        reached = np.cumsum(np.bincount(distances, minlength=self.dimension + 1))[: self.dimension + 1]
        shortlist = min(max(_BY_DISTANCE, len(self) // _BY_DISTANCE_SHARE), int(reached[-1]))
        places = np.flatnonzero(distances <= int(np.searchsorted(reached, shortlist)))
        # Levels have equal steps, so a bit adds its worth times the component. Whole numbers, as float32 holds them
        # exactly; a sum of fractions would depend on where in the array a row stands.
        whole = np.rint(vector * (2.0 ** (24 - PLANES) / np.abs(vector).sum()))
        worth = np.zeros((PLANES, self._words * 64), np.float32)
        worth[:, : self.dimension] = np.outer(2.0 ** np.arange(PLANES)[::-1], whole)
        by_signs = self._products(places, worth[:1])
        keep = min(_BY_SIGNS * count, len(places))
        if keep < len(places):
            places = places[by_signs >= np.partition(by_signs, len(places) - keep)[len(places) - keep]]
        products = self._products(places, worth)
        chosen = places[np.lexsort((places, -products))[:count]]
        holders = np.searchsorted(self._ends, chosen, "right")
        ids: list[int] = (self._first[holders] + chosen - (self._ends - self._lengths())[holders]).tolist()
        return ids

    def _products(self, places: Ints, worth: FloatArray) -> FloatArray:
        """What the bits of these passages come to, by what each is worth (planes, components)."""
        products = np.empty(len(places), np.float32)
        for start in range(0, len(places), _UNPACKED):  # where all are alike there may be any number
            part = self._columns[: len(worth) * self._words, places[start : start + _UNPACKED]].T
            bits = np.unpackbits(np.ascontiguousarray(part).view(np.uint8), axis=1)
            # BLAS would want floats, and start threads for longer than this takes.
            np.einsum("ij,j->i", bits, worth.ravel(), out=products[start : start + _UNPACKED])
        return products

    def _distances(self, vector: FloatArray) -> npt.NDArray[np.uint16]:
        """The Hamming distance of each passage, without temporary arrays larger than a block."""
        query = self._as_words(encode_codes(vector[None]))[0, : self._words]
        size = len(self)
        distances = np.zeros(size, np.uint16)
        differing, counts = np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.uint8)
        for start in range(0, size, _BLOCK):
            block = distances[start : start + _BLOCK]
            for column, word in zip(self._columns, query, strict=False):  # the signs alone
                bits, ones = differing[: len(block)], counts[: len(block)]
                np.bitwise_xor(column[start : start + len(block)], word, out=bits)
                np.bitwise_count(bits, out=ones)
                np.add(block, ones, out=block)
        return distances

    def _as_words(self, codes: bytes) -> npt.NDArray[np.uint64]:
        """Codes as rows of 64-bit words, each plane filled up with zeros."""
        planes = np.frombuffer(codes, np.uint8).reshape(-1, PLANES, self._plane_len)
        filled = np.pad(planes, ((0, 0), (0, 0), (0, self._words * 8 - self._plane_len)))
        return filled.reshape(-1, PLANES * self._words * 8).view(np.uint64)


def make_codes(connection: Connection, collection_id: int, dimension: int) -> None:
    """Makes the codes that are missing, from the vectors."""
    missing = connection.execute(
        "SELECT document_id, min(id), count(*) FROM chunks WHERE document_id IN (SELECT id FROM documents WHERE"
        " collection_id = ?1 AND id NOT IN (SELECT document_id FROM codes WHERE collection_id = ?1))"
        " GROUP BY document_id", (collection_id,),
    ).fetchall()
    for document, first, count in missing:
        rows = fetch_rows(connection, range(first, first + count), dimension)
        made = (document, collection_id, first, encode_codes(rows))
        connection.execute("INSERT INTO codes VALUES (?, ?, ?, ?)", made)
    connection.execute("UPDATE collections SET coded = 1 WHERE id = ?", (collection_id,))
