"""Answers from local-only documents are known again, and not kept themselves."""

from pathlib import Path

from store.answers import KeptAnswers
from tests.support.stores import open_store


async def test_an_answer_is_known_again_however_it_is_spaced(tmp_path: Path) -> None:
    with open_store(tmp_path / "store.db") as database:
        kept = KeptAnswers(database)
        for text in ("It was\nWintermute.", "It was Wintermute. ", "\udce9", " \n"):
            await kept.add(text)
        assert await kept.hold(["nothing", " It  was Wintermute."])
        assert await kept.hold(["\udce9"])
        assert not await kept.hold(["It was"]) and not await kept.hold([]) and not await kept.hold(["", " "])

        def columns(connection):  # type: ignore[no-untyped-def]
            return connection.execute("SELECT * FROM kept_answers").fetchall()

        rows = await database.run(columns)
    assert len(rows) == 2 and all(len(row) == 1 and len(row[0]) == 32 for row in rows)
    with open_store(tmp_path / "store.db") as database:
        assert await KeptAnswers(database).hold(["It was Wintermute."]), "also by the next process"
