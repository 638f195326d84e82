"""JSON mode: from a JSON schema to a grammar that llama.cpp lets the model follow.

The schema is a client's. What the converter or the engine cannot follow is told; what would make them work for hours is
refused beforehand: each repetition becomes rules of the grammar.
"""

import json
from typing import Any, Final

from edge_client.errors import BadUse

__all__ = ["grammar_of"]

_REPEATS_MAX: Final = 1000
_DEPTH_MAX: Final = 32
_GRAMMAR_MAX: Final = 256 << 10  # characters
_COUNTS: Final = frozenset({"minLength", "maxLength", "minItems", "maxItems"})


def grammar_of(schema: str, llama: Any) -> Any:
    """A `llama_cpp.LlamaGrammar`. "{}" is any JSON object. Raises BadUse."""
    import llama_cpp
    from llama_cpp.llama_grammar import JSON_GBNF, LlamaGrammar, json_schema_to_gbnf

    text = JSON_GBNF
    if schema != "{}":
        try:
            _bounded(json.loads(schema))
            text = json_schema_to_gbnf(schema)
        except BadUse:
            raise
        except Exception:  # the converter raises many types
            raise BadUse("the local model cannot follow this JSON schema", hint="make it simpler") from None
    if len(text) > _GRAMMAR_MAX:
        raise BadUse("the JSON schema is too large for the local model", hint="make it simpler")
    vocabulary = llama_cpp.llama_model_get_vocab(llama.model)
    # The binding does not look whether the engine took the grammar, and would go on with a null pointer.
    sampler = llama_cpp.llama_sampler_init_grammar(vocabulary, text.encode(), b"root")
    if not sampler:
        raise BadUse("the local model cannot follow this JSON schema", hint="make it simpler")
    llama_cpp.llama_sampler_free(sampler)
    return LlamaGrammar.from_string(text, verbose=False)


def _bounded(schema: Any, depth: int = 0) -> None:
    if depth > _DEPTH_MAX:
        raise BadUse(f"a JSON schema is at most {_DEPTH_MAX} levels deep")
    if isinstance(schema, dict):
        for name, value in schema.items():
            if name in _COUNTS and not (isinstance(value, dict) or (isinstance(value, int) and value <= _REPEATS_MAX)):
                raise BadUse(f"`{name}` in a JSON schema is at most {_REPEATS_MAX}")
            _bounded(value, depth + 1)
    elif isinstance(schema, list):
        for value in schema:
            _bounded(value, depth + 1)
