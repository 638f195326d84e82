"""The sections [[provider]], [[model]] and [inference] of gateway.toml: whom the gateway forwards to, and for which
models.

What is named here and does not exist is an error at the start, as is a name that leads back to itself.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct
from msgspec.structs import force_setattr

from relay.gateway.checks.fields import ModelName
from relay.gateway.errors import ConfigError
from relay.gateway.upstream.base import Timeouts, checked_base_url
from relay.gateway.upstream.dialects import ANTHROPIC_VERSION, Anthropic, Azure, Dialect, Inference, OpenAi
from relay.gateway.upstream.keys import SecretPlace
from relay.gateway.upstream.routing import Routing, Target

Seconds = Annotated[float, Meta(gt=0, le=3600)]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9._-]{1,64}\Z")]
_PLAIN: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_ALL: Final = ("chat", "responses", "embeddings")
_EXPLAINED: Final = "docs/PROVIDERS.md has examples"


class Server(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One base URL, where its key is, how long to wait for it, and when not to ask it: see `Breaker`."""

    base_url: str
    key_file: str | None = None
    key_env: str | None = None
    secret: SecretPlace | None = None
    connect_s: Seconds = 10.0
    first_byte_s: Seconds = 120.0
    idle_s: Seconds = 60.0
    breaker_failures: Annotated[int, Meta(ge=1, le=1_000)] = 5
    breaker_open_s: Seconds = 15.0

    def timeouts(self) -> Timeouts:
        return Timeouts(self.connect_s, self.first_byte_s, self.idle_s)

    @property
    def keys(self) -> int:
        """How many places of a key are named."""
        return 3 - [self.key_file, self.key_env, self.secret].count(None)


class Provider(Server, frozen=True, kw_only=True):
    """`models`: those that it serves; left out, all that no other is named for. `routes`: left out, all of its API.
    `name`: left out, that of its API.
    """

    api: Literal["openai", "azure", "anthropic"] = "openai"
    name: Name | Literal[""] = ""
    models: list[ModelName] = []
    routes: Annotated[list[Literal["chat", "responses", "embeddings"]], Meta(min_length=1)] | None = None
    api_version: Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}(-preview)?\Z")] | None = None
    anthropic_version: Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}\Z")] = ANTHROPIC_VERSION
    anthropic_beta: list[Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}\Z")]] = []

    def __post_init__(self) -> None:
        if not self.name:
            force_setattr(self, "name", self.api)

    @property
    def operations(self) -> tuple[str, ...]:
        return ("messages",) if self.api == "anthropic" else tuple(self.routes or _ALL)

    def dialect(self) -> Dialect:
        if self.api == "anthropic":
            return Anthropic(self.anthropic_version, tuple(self.anthropic_beta))
        return Azure(self.api_version) if self.api == "azure" else OpenAi()


class InferenceServer(Server, frozen=True, kw_only=True):
    """A server of the open inference protocol; `models`: those of its models that there is a route to."""

    models: list[Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]]
    name: Name = "inference"

    def dialect(self) -> Dialect:
        return Inference()


class Alias(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename={"there": "as"}):
    """A name that callers use. With `providers`: who serves it, in the order in which they are asked, `as` what, if not
    by this name (a table, if by different ones). Without: `as` is another model of this file.
    """

    name: ModelName
    providers: list[str] = []
    there: ModelName | dict[str, ModelName] | None = None


def sections_of(
    providers: Sequence[Provider], inference: InferenceServer | None
) -> list[tuple[str, Provider | InferenceServer]]:
    """Each with its path in gateway.toml."""
    found: list[tuple[str, Provider | InferenceServer]] = [
        ("provider" if len(providers) == 1 else f"provider[{number}]", one) for number, one in enumerate(providers)
    ]
    return found if inference is None else [*found, ("inference", inference)]


def routing_of(
    providers: Sequence[Provider], inference: InferenceServer | None, models: Sequence[Alias]
) -> Routing:
    """Raises ConfigError that names the key at fault."""
    for where, one in sections_of(providers, inference):
        _check_server(where, one)
        if isinstance(one, Provider):
            _check_provider(where, one)
    if len({one.name for one in providers}) != len(providers):
        raise ConfigError("provider: two have the same name", hint='as in name = "openai-eu"')
    if not providers:
        raise ConfigError("provider: there is none", hint=_EXPLAINED)
    if inference is not None:
        if any(one.name == inference.name for one in providers):
            raise ConfigError("inference.name: a provider has this name", hint="give it another")
        if inference.keys > 1:
            raise ConfigError("inference: set one of `key_file`, `key_env` and `secret`, or none of them")
    return _Names(providers, inference, models).routing()


def _check_server(where: str, server: Server) -> None:
    try:
        checked_base_url(server.base_url)
    except ConfigError as error:
        raise ConfigError(f"{where}.base_url: {error}", hint=error.hint) from None


def _check_provider(where: str, one: Provider) -> None:
    if one.keys != 1 and (one.keys or not one.base_url.startswith("http://")):
        raise ConfigError(f"{where}: set one of `key_file`, `key_env` and `secret`",
                          hint='as in key_file = "provider.key"; none only for a server on this machine')
    of_one = (("api_version", one.api_version, "azure"), ("anthropic_beta", one.anthropic_beta, "anthropic"))
    for key, value, api in of_one:
        if value and one.api != api:
            raise ConfigError(f'{where}.{key}: this is for api = "{api}"', hint=_EXPLAINED)
    if one.routes is not None and one.api == "anthropic":
        raise ConfigError(f"{where}.routes: Anthropic's API has /v1/messages alone", hint="leave it out")


class _Names:
    """Which name leads where."""

    def __init__(
        self, providers: Sequence[Provider], inference: InferenceServer | None, models: Sequence[Alias]
    ) -> None:
        self._providers = {one.name: one for one in providers}
        self._inference = inference
        self._models: dict[str, Alias] = {}
        self._places: dict[str, str] = {}
        for number, one in enumerate(models):
            if one.name in self._models:
                raise ConfigError(f"model[{number}].name: {one.name} is there twice", hint="leave one of them out")
            self._models[one.name], self._places[one.name] = one, f"model[{number}]"

    def routing(self) -> Routing:
        targets: dict[tuple[str, str], tuple[Target, ...]] = {}
        rest = self._rest = self._others()
        for name in dict.fromkeys([*self._models, *(name for one in self._providers.values() for name in one.models)]):
            for target in self._targets(name, ()):
                for operation in self._providers[target.provider].operations:
                    targets[operation, name] = (*targets.get((operation, name), ()), target)
        if (server := self._inference) is not None:
            targets |= {("infer", name): (Target(server.name, name),) for name in server.models}
        return Routing(targets, rest)

    def _others(self) -> dict[str, str]:
        """By operation, who serves the models that are named nowhere: who names none, unless there are several."""
        named = {name for model in self._models.values() for name in model.providers}
        # Of a model that is named nowhere, nothing may get into a path.
        free = [one for one in self._providers.values() if not one.models and one.api_version is None]
        rest: dict[str, str] = {}
        for operation in {operation for one in free for operation in one.operations}:
            able = [one.name for one in free if operation in one.operations]
            if len(able) == 1:
                rest[operation] = able[0]
            elif not named.issuperset(able):
                raise ConfigError(
                    f"provider: {' and '.join(able)} do not say which models they serve",
                    hint='name them, as in models = ["gpt-4o"]; [[model]] gives an order to ask in',
                )
        return rest

    def _targets(self, name: str, seen: tuple[str, ...]) -> Iterator[Target]:
        model = self._models.get(name)
        if model is None:
            able = [one for one in self._providers.values() if name in one.models]
            able = able or [self._providers[one] for one in dict.fromkeys(self._rest.values())]
            where = self._places.get(seen[-1] if seen else "", "provider.models")
            if not able:
                raise ConfigError(f"{where}.as: no provider serves {name}", hint=_EXPLAINED)
            yield from (self._target(one, name, where) for one in able)
            return
        where = self._places[name]
        if name in seen:
            raise ConfigError(f"{where}.as: {' is '.join((*seen, name))}, which leads nowhere",
                              hint="name a provider by `providers`, or another model")
        if not model.providers:
            if not isinstance(model.there, str):
                raise ConfigError(f"{where}: neither `providers` nor another model by `as`", hint=_EXPLAINED)
            yield from self._targets(model.there, (*seen, name))
            return
        if len(set(model.providers)) != len(model.providers):
            raise ConfigError(f"{where}.providers: one of them is there twice", hint="each is asked once")
        for provider in model.providers:
            if provider not in self._providers:
                raise ConfigError(f"{where}.providers: there is no provider {provider}", hint="each has a `name`")
        for other in model.there if isinstance(model.there, dict) else ():
            if other not in model.providers:
                raise ConfigError(f"{where}.as: {other} is not among its providers", hint=_EXPLAINED)
        for provider in model.providers:
            there = model.there if isinstance(model.there, str) else (model.there or {}).get(provider, name)
            one = self._providers[provider]
            if one.models and there not in one.models:
                raise ConfigError(f"{where}: {provider} does not serve {there}", hint="add it to its `models`")
            yield self._target(one, there, where)

    @staticmethod
    def _target(one: Provider, there: str, where: str) -> Target:
        if one.api_version is not None and not _PLAIN.issuperset(there):
            raise ConfigError(f"{where}: {there} is not the name of a deployment of Azure's", hint=_EXPLAINED)
        return Target(one.name, there)
