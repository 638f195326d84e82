"""What gateway.toml says of policy, checked: groups, the simple form `[[allow]]`, files of Cedar, or where OPA is."""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

from cedarpy import policies_to_json_str
from msgspec import Meta, Struct

from relay.gateway.errors import ConfigError
from relay.gateway.policy.cedar import Rule, defects, named
from relay.gateway.policy.patterns import Pattern, pattern_at
from relay.gateway.upstream.base import is_loopback

FILE_MAX: Final = 1 << 20
_EXPLAINED: Final = "docs/POLICY.md shows the document that policies see, with examples"
_TOKEN = re.compile(r"""//[^\n]*|"(?:\\.|[^"\\])*"|;|[^/";]+|.""", re.DOTALL)


class Group(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`ids`: patterns; who fits one is in the group."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
    ids: list[str]


class Allow(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The simple form: who fits `id` may invoke `models`, and come by any hop."""

    id: str
    models: list[str]


class Policies(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`cedar`: files, beside those of [[allow]]; or `opa`: the URL of a boolean, which then decides alone."""

    cedar: list[str] = []
    opa: str | None = None
    opa_timeout_s: Annotated[float, Meta(gt=0, le=10)] = 0.25
    opa_token_file: str | None = None


@dataclass(frozen=True)
class OpaSettings:
    url: str
    timeout_s: float
    token_file: Path | None


@dataclass(frozen=True)
class Rules:
    """All that decisions depend on. `models`: names that /v1/models tells a device of, as far as policy allows them."""

    patterns: tuple[tuple[str, Pattern], ...] = ()
    cedar: tuple[Rule, ...] = ()
    opa: OpaSettings | None = None
    models: tuple[str, ...] = ()


def checked(
    directory: Path, groups: Sequence[Group], allows: Sequence[Allow], policies: Policies, models: Sequence[str], *,
    elsewhere: Collection[str] = (),
) -> Rules:
    """Reads the files, too. `elsewhere`: models that are no provider's, and so not for `/v1/models`.

    Raises ConfigError that names the key, or file and line.
    """
    patterns: list[tuple[str, Pattern]] = []
    for number, group in enumerate(groups):
        if not group.ids:
            raise ConfigError(f"group[{number}].ids: a group names at least one ID pattern",
                              hint='as in ids = ["/edge/factory-floor/*"]')
        patterns += [(group.name, pattern_at(f"group[{number}]", text)) for text in group.ids]
    if policies.opa is not None:
        if allows or policies.cedar:
            raise ConfigError("policy.opa: OPA decides alone, so there can be no [[allow]] and no policy.cedar",
                              hint="say in Rego what they say, or leave out `opa`")
        token = None if policies.opa_token_file is None else directory / policies.opa_token_file
        opa = OpaSettings(_checked_url(policies.opa), policies.opa_timeout_s, token)
        return Rules(tuple(patterns), (), opa, tuple(sorted(set(models) - set(elsewhere))))
    rules: list[Rule] = []
    for number, allow in enumerate(allows):
        name = f"allow[{number}]"
        patterns.append((name, pattern_at(name, allow.id)))
        rules += _compiled(name, allow.models)
    known = {name for name, _ in patterns}
    for file in policies.cedar:
        rules += _read(directory / file, known)
    if len({rule.name for rule in rules}) != len(rules):
        raise ConfigError("policy.cedar: a file is named twice, or two have one name", hint="rename one")
    named = {model for allow in allows for model in allow.models}
    return Rules(tuple(patterns), tuple(rules), None, tuple(sorted({*models, *named} - set(elsewhere))))


def _compiled(name: str, models: Sequence[str]) -> list[Rule]:
    """An [[allow]] as Cedar, in which its pattern is a group of its name, which no group of a person's can have."""
    if not models:
        raise ConfigError(f"{name}: a rule allows at least one model", hint='as in models = ["gpt-4o-mini"]')
    if any("*" in model for model in models):
        raise ConfigError(f"{name}: models are named in full", hint="a * in a model name has no meaning here")
    wanted = [{"Value": {"__entity": {"type": "Model", "id": model}}} for model in models]
    among: dict[str, object] = {"contains": {"left": {"Set": wanted}, "right": {"Var": "resource"}}}

    def permit(verb: str, conditions: list[dict[str, object]]) -> dict[str, object]:
        return {
            "effect": "permit", "principal": {"op": "in", "entity": {"type": "Group", "id": name}},
            "action": {"op": "==", "entity": {"type": "Action", "id": verb}}, "resource": {"op": "All"},
            "conditions": conditions,
        }

    return [
        Rule(name, permit("model:invoke", [{"kind": "when", "body": among}])),
        Rule(f"{name} by any hop", permit("relay:use", [])),
    ]


def _read(path: Path, groups: set[str]) -> Iterator[Rule]:
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"policy.cedar: cannot read {path.name}: {(error.strerror or '').lower()}",
                          hint="paths are relative to gateway.toml") from None
    except UnicodeDecodeError:
        raise ConfigError(f"policy.cedar: {path.name} is not UTF-8 text") from None
    if len(data) > FILE_MAX:
        raise ConfigError(f"policy.cedar: {path.name} is over 1 MiB")
    for line, statement in statements(text):
        where = f"{path.name}:{line}"
        try:
            found = json.loads(policies_to_json_str(statement))
            wrong = defects(statement)
        except ValueError as error:
            raise ConfigError(f"{where}: not a policy: {str(error)[:200]}", hint=_EXPLAINED) from None
        if found["templates"]:
            raise ConfigError(f"{where}: a template decides nothing by itself", hint="name the group or the ID")
        if wrong:
            raise ConfigError(f"{where}: {wrong[0][:200]}", hint=_EXPLAINED)
        (policy,) = found["staticPolicies"].values()
        for group in named("Group", policy):
            if group not in groups or "[" in group:
                raise ConfigError(f"{where}: there is no group {group[:64]!r}, so the rule could never apply to it",
                                  hint="groups are [[group]] in gateway.toml")
        yield Rule(where, policy, policy.get("annotations", {}).get("id") or "")


def statements(text: str) -> Iterator[tuple[int, str]]:
    """(line, policy) for each policy of a file; what stands behind the last semicolon comes too, unless it is empty."""
    held, line, at = "", 0, 1
    for token in _TOKEN.findall(text):
        comment = token.startswith("//")
        if not line and not comment and token.strip():
            line = at + token[: len(token) - len(token.lstrip())].count("\n")
        at += token.count("\n")
        held += " " if comment else token
        if token == ";":
            yield line, held.strip()
            held, line = "", 0
    if held.strip():
        yield line, held.strip()


def _checked_url(url: str) -> str:
    """https, or http to loopback: who can answer in OPA's place decides everything."""
    parts = urlsplit(url)
    try:
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", 0
    hint = 'like "http://127.0.0.1:8181/v1/data/causeway/allow"'
    more = parts.username or parts.query or parts.fragment
    if parts.scheme not in ("http", "https") or not host or port == 0 or more:
        raise ConfigError("policy.opa: this is not the URL of a document in OPA", hint=hint)
    if not parts.path.startswith("/v1/data/"):
        raise ConfigError("policy.opa: a decision of OPA's is a path under /v1/data/", hint=hint)
    if parts.scheme == "http" and not is_loopback(host):
        raise ConfigError("policy.opa: plain http to another machine; anyone on the way could decide", hint="use https")
    return url
