"""An encrypted vector store: documents, passages, words and vectors in one SQLCipher database (docs/STORE.md).

`VectorStore` is for programs without an event loop, `Database` with `Documents` and `Search` for those with one. Each
name is loaded when it is first used, so that who lists documents does not wait for numpy.
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from store.database import STORE_SCHEMA, Database
    from store.documents import Chunk, Document, Documents
    from store.errors import StoreError
    from store.filters import Filter
    from store.keys import DatabaseKey, HeldKey, Passphrase
    from store.memory import keep_private
    from store.search import Hit, Search
    from store.vector_store import VectorStore

__all__ = [
    "STORE_SCHEMA", "Chunk", "Database", "DatabaseKey", "Document", "Documents", "Filter", "HeldKey", "Hit",
    "Passphrase", "Search", "StoreError", "VectorStore", "keep_private",
]

if not TYPE_CHECKING:  # else a wrong name would pass for anything
    import importlib

    _MODULES: Final = {
        "STORE_SCHEMA": "database", "Chunk": "documents", "Database": "database", "DatabaseKey": "keys",
        "Document": "documents", "Documents": "documents", "Filter": "filters", "HeldKey": "keys", "Hit": "search",
        "Passphrase": "keys", "Search": "search", "StoreError": "errors", "VectorStore": "vector_store",
        "keep_private": "memory",
    }

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module 'store' has no attribute {name!r}")
        return getattr(importlib.import_module(f"store.{_MODULES[name]}"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
