"""Who is asked for which model, in which order, and by what name it goes there. Pure; made once from gateway.toml."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple


class Target(NamedTuple):
    """A provider by its name, and what it calls the model."""

    provider: str
    model: str


class Routing:
    """All of a configuration's."""

    def __init__(self, targets: Mapping[tuple[str, str], tuple[Target, ...]], rest: Mapping[str, str]) -> None:
        """`targets` by operation and model; `rest`: by operation, who serves the models that are not named."""
        self._targets, self._rest = targets, rest
        self.names = frozenset(targets)
        self._named = frozenset(name for _, name in targets)

    def targets(self, operation: str, model: str) -> tuple[Target, ...]:
        """In the order in which they are asked; empty if there is no way."""
        found = self._targets.get((operation, model))
        if found is None:
            provider = self._rest.get(operation)
            return () if provider is None or model in self._named else (Target(provider, model),)
        return found

    def serves(self, operation: str, model: str) -> bool:
        return bool(self.targets(operation, model))

    def told(self) -> Iterator[str]:
        """For a person, a line for each model that is named, and one for the others where there are such lines."""
        lines: dict[str, list[str]] = {}
        for (operation, name), ways in sorted(self._targets.items()):
            asked = [way.provider if way.model == name else f"{way.provider} as {way.model}" for way in ways]
            lines.setdefault(f"{name} is asked of {', then '.join(asked)}", []).append(operation)
        if lines or len(set(self._rest.values())) > 1:
            for operation, provider in sorted(self._rest.items()):
                lines.setdefault(f"every other model is asked of {provider}", []).append(operation)
        return (f"{line} ({', '.join(operations)})" for line, operations in lines.items())

    def knows(self, model: str) -> bool:
        """Whether it leads anywhere, by any route."""
        return model in self._named or bool(self._rest)
