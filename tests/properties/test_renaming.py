"""An alias in a request's body: another name in the place of the model's own, and not a byte else."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.gateway.upstream.rename import renamed

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,20}", fullmatch=True)
keys = st.sampled_from(["model", "Model", "a", 'mo"del', "mod\\el", "}", "{", ":", ""]) | st.text(max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12)
    | st.sampled_from(['"model": "x"', "\\", '\\"', "}{", "model"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=12,
)


@given(st.data())
def test_only_the_model_s_own_name_changes(data: st.DataObject) -> None:
    members = data.draw(st.dictionaries(keys.filter(lambda key: key != "model"), values, max_size=4))
    before, after = data.draw(names), data.draw(names)
    items: list[tuple[str, Any]] = list(members.items())
    items.insert(data.draw(st.integers(0, len(items))), ("model", before))
    blank = data.draw(st.sampled_from(["", " ", "\n\t", "\r\n  "]))
    ascii_ = data.draw(st.booleans())

    def made(name: str) -> bytes:
        parts = [
            f"{json.dumps(key, ensure_ascii=ascii_)}{blank}:{blank}"
            f"{json.dumps(name if key == 'model' else value, ensure_ascii=ascii_)}" for key, value in items
        ]
        return (blank + "{" + f"{blank},{blank}".join(parts) + blank + "}" + blank).encode("utf-8", "replace")

    assert renamed(made(before), after) == made(after)


@pytest.mark.parametrize("body", [
    b'{"\\u006dodel":"a"}', b'{"x":{"model":"b"},"\\u006dodel" : "a"}', b'{"x":"\\\\","model":"a"}',
    b'{"x":[{"model":"b"}],"model":"\\u0061"}', '{"é":"\\"model\\":\\"b\\"","model":"a"}'.encode(),
])
def test_however_it_is_written(body: bytes) -> None:
    changed = renamed(body, "new")
    assert json.loads(changed) == json.loads(body) | {"model": "new"}
    assert len(changed) - len(b"new") in (len(body) - 1, len(body) - 6)


def test_the_largest_and_the_oddest_bodies_pass() -> None:
    for filling in (b'"' + b"\\" * 500_000 + b'"', b'"' + b'x' * 1_000_000 + b'"', b"[" * 30 + b"]" * 30,
                    b"[" + b"{}," * 100_000 + b"1]"):
        body = b'{"x":' + filling + b',"model":"a"}'
        assert renamed(body, "b") == body[:-3] + b'b"}'


def test_without_one_nothing_goes_on() -> None:
    with pytest.raises(ValueError, match="without a model"):
        renamed(b'{"x":{"mode":"a"}}', "b")
