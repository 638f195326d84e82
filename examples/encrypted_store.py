"""Three passages, encrypted on disk, found by meaning and by words. The vectors are any embedder's: here, made up."""

from store import Passphrase, VectorStore

passphrase = Passphrase("correct horse battery staple")  # from a prompt or a private file, outside of examples

with VectorStore.open("notes", passphrase, model_id="made up") as notes:
    notes.add("pumps.md", ["The P-101 is primed by hand.", "Its strainer is cleaned weekly."], [[9, 1, 0], [3, 4, 0]])
    notes.add("diary.md", ["The ferry was late again."], [[0, 1, 7]], label="local-only")
    for hit in notes.search("Who cleans the strainer?", [2, 5, 1], top=2):
        print(f"{hit.score:.2f}  {hit.source}: {hit.text}")
