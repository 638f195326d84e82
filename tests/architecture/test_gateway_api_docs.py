"""docs/openapi.json and the table of refusals in docs/GATEWAY_API.md are what the code says."""

import json
import re
from pathlib import Path

import jsonschema_rs
import pytest

from relay.gateway.checks.fields import REFUSED
from relay.gateway.checks.openapi import PATHS, schemas
from relay.gateway.checks.problems import PROBLEMS
from relay.gateway.checks.schema import REQUESTS
from relay.gateway.routes import ROUTES
from scripts.gateway_api import written

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "GATEWAY_API.md").read_text()


@pytest.mark.parametrize("path", written(), ids=[path.name for path in written()])
def test_it_is_current(path: Path) -> None:
    assert path.read_bytes() == written()[path], "run scripts/gateway_api.py"


def test_each_route_with_a_body_is_described() -> None:
    assert REQUESTS.keys() == PATHS.keys() == {one.operation for one in ROUTES.values() if one.bodied}
    assert {route.replace("NAME", "{name}") for (_, route), one in ROUTES.items() if one.bodied} == set(PATHS.values())
    for path in PATHS.values():
        assert f"`POST {path.replace('{name}', 'NAME')}`" in PAGE


def test_the_schemas_are_of_the_dialect_and_say_what_is_refused() -> None:
    for schema in schemas().values():
        assert jsonschema_rs.meta.is_valid(schema) and "relay" not in json.dumps(schema)
        patterns = re.findall(r'"pattern": ("[^"]*")', json.dumps(schema))
        assert not [one for one in patterns if "\\Z" in one or "\\A" in one]
    assert set(REFUSED.values()) == {"remote_content", "provider_state", "hosted_tool"} <= PROBLEMS.keys()
    assert all(f"`{code}`" in PAGE for code in PROBLEMS)
