"""What is to be played: who there is, which weather lies between them, what is asked, and what goes wrong when."""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import msgspec
from msgspec import Meta

from transport.errors import BadInput
from transport.links.weather import PROFILES, Weather, parse_weather
from transport.messages import Padding

EDGES_MAX: Final = 32
HOPS_MAX: Final = 16
DURATION_MAX_S: Final = 31 * 86_400.0
_PART: Final = r"([0-9]{1,7}(?:\.[0-9]{1,3})?)(ms|s|m|h|d)"
_DURATION: Final = re.compile(rf"(?:{_PART})+", re.ASCII)
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}

Action = Literal["kill edge", "kill hop", "drop link", "kill gateway"]


class Link(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Another weather than the usual one between an edge and a hop; "none" if they never meet."""

    edge: str
    hop: str
    weather: str


class Prompts(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What each edge asks: a prompt of `size` bytes every so often (the mean of an even spread), answered by about
    `tokens` tokens, the first after `first`, then `rate` a second.
    """

    every: str = "5m"
    size: Annotated[int, Meta(ge=1, le=500_000)] = 400
    tokens: Annotated[int, Meta(ge=1, le=20_000)] = 150
    rate: Annotated[float, Meta(gt=0, le=10_000)] = 30.0
    first: str = "400ms"


class Fault(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Something goes wrong: at a time, and again `every` so often; `who` is an edge or a hop, and may be left out
    where there is only one, or for a link's: then every edge's. What was killed comes back after `lasts`.
    """

    at: str
    do: Action
    who: str = ""
    lasts: str = "5s"
    every: str = ""


class Scenario(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Read it with `Scenario.load`, or make one from a profile with `of_profile`. Edges and hops are counted from 1."""

    title: str = "a simulated run"
    duration: str = "1h"
    edges: Annotated[int, Meta(ge=1, le=EDGES_MAX)] = 1
    hops: Annotated[int, Meta(ge=1, le=HOPS_MAX)] = 1
    weather: str = "ble-1m"
    padding: Padding = Padding.BUCKET
    seed: Annotated[int, Meta(ge=0)] = 1
    links: list[Link] = []
    prompts: Prompts = Prompts()
    faults: list[Fault] = []

    @property
    def edge_names(self) -> list[str]:
        return [f"edge-{number}" for number in range(1, self.edges + 1)]

    @property
    def hop_names(self) -> list[str]:
        return [f"hop-{number}" for number in range(1, self.hops + 1)]

    def weather_between(self, edge: str, hop: str) -> Weather | None:
        """None if they never meet."""
        text = next((one.weather for one in self.links if (one.edge, one.hop) == (edge, hop)), self.weather)
        return None if text == "none" else parse_weather(text)

    @classmethod
    def load(cls, text: str) -> Self:
        """From TOML. Raises BadInput that names the field."""
        try:
            scenario = msgspec.convert(tomllib.loads(text), cls)
        except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            raise BadInput(f"the scenario does not read: {error}", hint="see examples/scenarios") from None
        return scenario.checked()

    def checked(self) -> Self:
        """Raises BadInput for times, weather and names that are none."""
        for text in (self.duration, self.prompts.every, self.prompts.first):
            seconds(text)
        if not 0 < seconds(self.duration) <= DURATION_MAX_S:
            raise BadInput("the scenario's duration is at most 31 days")
        if seconds(self.prompts.every) < 0.1:
            raise BadInput("the scenario's prompts come at most ten times a second")
        known = {*self.edge_names, *self.hop_names}
        for link in self.links:
            if link.edge not in self.edge_names or link.hop not in self.hop_names:
                raise BadInput("the scenario has a link of nobody", hint=f"there are {', '.join(sorted(known))}")
        for edge in self.edge_names:
            if not any(self.weather_between(edge, hop) for hop in self.hop_names):
                raise BadInput(f"the scenario leaves {edge} without a hop")
        for fault in self.faults:
            for text in (fault.at, fault.lasts, fault.every or "0.1s"):
                seconds(text)
            if fault.every and seconds(fault.every) < 0.1:
                raise BadInput("the scenario's faults come at most ten times a second")
            if fault.who and fault.who not in known:
                raise BadInput("the scenario has a fault of nobody", hint=f"there are {', '.join(sorted(known))}")
        return self


def seconds(text: str) -> float:
    """From "90s", "15m", "1.5h", "2d", "400ms" or "11m30s". Raises BadInput."""
    if _DURATION.fullmatch(text) is None:
        raise BadInput("this is not a duration", hint='as in "400ms", "90s", "11m30s", "24h" or "2d"')
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, text, re.ASCII))


def of_profile(weather: str) -> Scenario:
    """One edge and one hop in that weather. Raises BadInput."""
    return Scenario(title=weather, weather=str(parse_weather(weather))).checked()


def read(name: str) -> Scenario:
    """A scenario file, or a profile of weather. Raises BadInput."""
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        try:
            return Scenario.load(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError):
            raise BadInput("the scenario file cannot be read", hint="give a .toml file, or a profile") from None
    if name.partition("?")[0] not in PROFILES:
        raise BadInput(
            "there is no such scenario or weather", hint=f"give a .toml file, or one of {', '.join(PROFILES)}"
        )
    return of_profile(name)
