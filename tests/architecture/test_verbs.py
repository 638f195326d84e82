"""Every door of the gateway declares the verb that policy decides on, and policy knows every verb."""

import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from aiohttp import web

from relay.gateway import https, public
from relay.gateway.admin import Admin
from relay.gateway.api import Api
from relay.gateway.app import serve
from relay.gateway.identity.oauth import make_oauth
from relay.gateway.policy.cedar import SCHEMA
from relay.gateway.policy.questions import ADMIN_VERBS, VERBS
from relay.gateway.routes import ADMIN_OPERATIONS, HTTPS_ROUTES, OPEN, ROUTES, find

ROOT = Path(__file__).resolve().parents[2]


def doors(app: web.Application) -> set[tuple[str, str]]:
    return {
        (route.method, route.resource.canonical)
        for route in app.router.routes() if route.resource is not None and route.method != "HEAD"
    }


def any_app(make: Any, **known: Any) -> web.Application:
    """An app whose handlers are never called, so that nothing behind them is needed."""
    parameters = inspect.signature(make).parameters
    return cast(web.Application, make(**{name: known.get(name) for name in parameters}))


def test_each_request_has_a_verb() -> None:
    for (method, route), target in ROUTES.items():
        assert target.verb in VERBS, route
        found = find(method, route.replace("NAME", "some-model"))
        assert found is not None and found.verb == target.verb
        assert ("NAME" in route) == (found.model == "some-model")


def test_each_door_by_https_declares_one_or_that_it_is_open() -> None:
    from relay.gateway.listening import Gate, HttpsLimits

    unused = cast(Any, None)
    requests = Api(
        callers=unused, pipeline=unused, enrolment=unused, policy=cast(Any, SimpleNamespace(changed=[])), still=unused,
        traces=unused, telemetry=unused, refusals=unused, gate=unused,
    )
    oauth, _ = make_oauth(
        "https://gw.example", keys=unused, enrolment=unused, authority=unused, revocations=unused, audit=unused,
        refusals=unused, body_s=1.0,
    )
    found = doors(any_app(https.make_app, gate=Gate(HttpsLimits()), clock=lambda: 0.0, doors=[requests, oauth]))
    found |= doors(https.make_health_app(lambda: True))
    page = doors(any_app(public.make_public_app, gate=Gate(HttpsLimits()), clock=lambda: 0.0, origin="https://gw.example"))
    files = {(method, path) for method, path in page if re.fullmatch(r"/hop/\w+\.(js|css|svg)", path)}
    assert files
    found |= page - files | {("GET", "/hop/FILE")}
    assert found == HTTPS_ROUTES.keys()
    assert {verb for verb in HTTPS_ROUTES.values() if verb != OPEN} <= VERBS.keys()


def test_each_operation_of_an_administrator_has_one() -> None:
    offered = set(re.findall(r'\.offer\(\s*"(\w+)"', inspect.getsource(serve)))
    operations = Admin(*[cast(Any, None)] * 6)._operations.keys() | offered
    assert "policy_reload" in operations
    assert operations <= ADMIN_OPERATIONS.keys()
    assert set(ADMIN_OPERATIONS.values()) <= set(ADMIN_VERBS)


def test_the_schema_knows_each_verb_with_its_resource() -> None:
    known: dict[str, str] = {}
    for actions, resource in re.findall(r'(?s)action ((?:"[\w:*-]+",?\s*)+)[^;]*?resource: (\w+)', SCHEMA):
        known |= dict.fromkeys(re.findall(r'"([^"]+)"', actions), resource)
    assert known == VERBS


def test_the_page_names_each_verb() -> None:
    page = (ROOT / "docs" / "POLICY.md").read_text()
    for verb in VERBS:
        assert f"`{verb}`" in page or verb.startswith("admin:"), verb
    example = json.loads(re.search(r"(?s)```json\n(.*?)```", page)[1])  # type: ignore[index]
    assert set(example) == {"principal", "action", "resource", "context"}
