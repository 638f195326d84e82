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
FILE_MAX: Final = 1 << 20  # bytes
_PART: Final = r"([0-9]{1,7}(?:\.[0-9]{1,3})?)(ms|s|m|h|d)"
_DURATION: Final = re.compile(rf"(?:{_PART})+", re.ASCII)
_EXAMPLES: Final = "see examples/scenarios"
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
    where there is only one, or for a link's: then every edge's. What was killed comes back after `lasts`, so a fault
    that would last beyond the end does not begin.
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
        except tomllib.TOMLDecodeError as error:
            raise BadInput(f"the scenario is not TOML: {_explain(str(error))}", hint=_EXAMPLES) from None
        except RecursionError:
            raise BadInput("the scenario is nested too deeply", hint=_EXAMPLES) from None
        except msgspec.ValidationError as error:
            raise BadInput(f"the scenario does not fit: {_explain(str(error))}", hint=_EXAMPLES) from None
        for fault in scenario.checked().faults:
            if seconds(fault.at) + seconds(fault.lasts) >= seconds(scenario.duration):
                raise BadInput(
                    f"the fault at {fault.at} never comes: the run ends after {scenario.duration}",
                    hint=f"let it begin and end sooner (it lasts {fault.lasts}), or make `duration` longer",
                )
        return scenario

    def checked(self) -> Self:
        """Raises BadInput for times, weather and names that are none."""
        if not self.title.isprintable():  # it is shown on a terminal
            raise BadInput("title holds what is no character", hint="write it in one line, without control characters")
        run_seconds(self.duration, "duration")
        seconds(self.prompts.first, "prompts.first")
        _often(self.prompts.every, "prompts.every")
        self._check_links()
        for number, fault in enumerate(self.faults):
            where = f"faults[{number}]"
            seconds(fault.at, f"{where}.at")
            seconds(fault.lasts, f"{where}.lasts")
            if fault.every:
                _often(fault.every, f"{where}.every")
            self._check_who(fault, where)
        return self

    def _check_links(self) -> None:
        for number, link in enumerate(self.links):
            if link.edge not in self.edge_names or link.hop not in self.hop_names:
                known = ", ".join(self.edge_names + self.hop_names)
                raise BadInput(f"links[{number}] is between nobody", hint=f"there are {known}")
            if any((link.edge, link.hop) == (one.edge, one.hop) for one in self.links[:number]):
                raise BadInput(
                    f"links[{number}]: {link.edge} and {link.hop} have a weather already", hint="leave one of them out"
                )
        for edge in self.edge_names:
            if not any([self.weather_between(edge, hop) for hop in self.hop_names]):  # each of them has to be one
                raise BadInput(f"{edge} never meets a hop", hint='give it a weather other than "none"')

    def _check_who(self, fault: Fault, where: str) -> None:
        """A fault that finds nobody would silently not happen."""
        match fault.do:
            case "kill gateway":
                if fault.who:
                    raise BadInput(f"{where}.who: there is one gateway", hint="leave `who` out")
                return
            case "kill hop":
                names, kind = self.hop_names, "hop"
            case _:
                names, kind = self.edge_names, "edge"
        if fault.who and fault.who not in names:
            raise BadInput(f"{where}.who is no {kind}", hint=f"there are {', '.join(names)}")
        if not fault.who and fault.do != "drop link" and len(names) > 1:
            raise BadInput(f"{where}: which {kind} is killed", hint=f"set `who` to one of {', '.join(names)}")


def seconds(text: str, where: str = "") -> float:
    """From "90s", "15m", "1.5h", "2d", "400ms" or "11m30s". Raises BadInput, with `where` it says of what."""
    if _DURATION.fullmatch(text) is None:
        raise BadInput(
            f"{where or 'this'} is not a duration", hint='as in "400ms", "90s", "11m30s", "24h" or "2d"'
        )
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, text, re.ASCII))


def run_seconds(text: str, where: str) -> float:
    """Of a whole run: more than 0 and at most 31 days. Raises BadInput."""
    length = seconds(text, where)
    if not 0.001 <= length <= DURATION_MAX_S:
        raise BadInput(f"{where} is from 1ms to 31d", hint='as in "90s", "15m" or "24h"')
    return length


def _often(text: str, where: str) -> None:
    if seconds(text, where) < 0.1:
        raise BadInput(f"{where}: at most ten times a second", hint='"100ms" is the shortest')


def _explain(text: str) -> str:
    """msgspec's words, with the path in TOML's manner: `faults[0].do: invalid enum value 'rain'`."""
    message, _, place = text.partition(" - at `")
    path = place.rstrip("`").removeprefix("$").lstrip(".")
    return f"{path}{': ' if path else ''}{message[:1].lower()}{message[1:200]}"


def of_profile(weather: str) -> Scenario:
    """One edge and one hop in that weather. Raises BadInput."""
    return Scenario(title=weather, weather=str(parse_weather(weather))).checked()


def read(name: str) -> Scenario:
    """A scenario file, or a profile of weather. Raises BadInput."""
    if name.partition("?")[0] in PROFILES:
        return of_profile(name)
    try:
        with Path(name).open("rb") as file:
            data = file.read(FILE_MAX + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = (getattr(error, "strerror", None) or "this cannot be a name").lower()
        if not name.endswith(".toml") and not isinstance(error, PermissionError):
            raise BadInput(
                "there is no such scenario or weather", hint=f"give a .toml file, or one of {', '.join(PROFILES)}"
            ) from None
        raise BadInput(f"cannot read the scenario file: {reason}", hint="give a .toml file, or a profile") from None
    if len(data) > FILE_MAX:
        raise BadInput("the scenario file is over 1 MiB", hint=_EXAMPLES)
    try:
        return Scenario.load(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise BadInput("the scenario file is not text in UTF-8", hint=_EXAMPLES) from None
