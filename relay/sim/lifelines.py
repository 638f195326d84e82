"""What became of each prompt, and what the run amounts to."""

import statistics
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

PENDING: Final = ""  # outcome of a prompt that nothing is known of yet; at the end of a run: it is lost
GROWTH_FROM: Final = 0.25  # of a run: caches are warm by then


@dataclass(slots=True)
class Lifeline:
    """One prompt. Times in seconds from the beginning of the run. `gaps`: (link lost, stream going on again)."""

    number: int
    edge: str
    asked: float
    request_id: bytes | None = None
    began: float | None = None  # first byte of the answer
    ended: float | None = None
    outcome: str = PENDING  # delivered, interrupted, or the code of another end
    whole: bool = False
    had: int = 0  # bytes of the answer, since it was last read from the beginning
    tokens: int = 0  # of the answer that were heard for the first time
    gaps: tuple[tuple[float, float], ...] = ()
    broken: float | None = None  # since when its stream does not go on


@dataclass(frozen=True, slots=True)
class Sample:
    """The state at one moment. In bytes, over all links: `carried` since the run began, and the most that each link had
    `under_way` since the last look.
    """

    at: float
    carried: int
    under_way: int
    tasks: int
    descriptors: int
    objects: int  # that the collector knows, less what is kept here
    memory: int  # KiB, resident


@dataclass
class Course:
    """All that happened in a run."""

    title: str
    seed: int
    duration_s: float
    edges: list[str]
    lifelines: list[Lifeline] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    drops: list[tuple[float, str]] = field(default_factory=list)  # of links, by edge
    faults: list[tuple[float, str]] = field(default_factory=list)
    apart: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # out of reach of every hop, by edge
    resumed: list[float] = field(default_factory=list)  # s from a way back to the stream going on
    token_delays: "array[float]" = field(default_factory=lambda: array("d"))  # s from the provider to the reader
    accepted: Counter[int] = field(default_factory=Counter)
    up: int = 0  # bytes on links
    down: int = 0
    real_s: float = 0.0

    def numbers(self) -> dict[str, Any]:
        """What `relay sim run` prints. Times in seconds, rounded to milliseconds; bytes on links of edges."""
        outcomes = Counter(one.outcome for one in self.lifelines)
        first = [one.began - one.asked for one in self.lifelines if one.began is not None]
        others = {name: count for name, count in outcomes.items() if name not in ("delivered", "interrupted", PENDING)}
        return {
            "title": self.title, "seed": self.seed, "simulated_s": round(self.duration_s, 3),
            "real_s": round(self.real_s, 2), "prompts": len(self.lifelines),
            "delivered": sum(one.outcome == "delivered" and one.whole for one in self.lifelines),
            "interrupted": outcomes["interrupted"], "failed": others,
            "lost": outcomes[PENDING] + sum(one.outcome == "delivered" and not one.whole for one in self.lifelines),
            "doubled": sum(count > 1 for count in self.accepted.values()),
            "drops": len(self.drops), "resumes": sum(len(one.gaps) for one in self.lifelines),
            "bytes_up": self.up, "bytes_down": self.down,
            "first_token_p50_s": _quantile(first, 0.5), "first_token_p95_s": _quantile(first, 0.95),
            "token_delay_p50_s": _quantile(self.token_delays, 0.5),
            "token_delay_p95_s": _quantile(self.token_delays, 0.95),
            "resume_p50_s": _quantile(self.resumed, 0.5), "resume_p95_s": _quantile(self.resumed, 0.95),
            **{f"{name}_growth": self._growth(name) for name in ("tasks", "descriptors", "objects", "memory")},
        }

    def _growth(self, name: str) -> float:
        """Of the medians of the run's second and last quarter."""
        values = [getattr(one, name) for one in self.samples]
        quarter = int(len(values) * GROWTH_FROM)
        if not quarter:
            return 0.0
        return float(statistics.median(values[-quarter:]) - statistics.median(values[quarter:2 * quarter]))


def _quantile(values: Sequence[float], share: float) -> float | None:
    """None without values."""
    return round(sorted(values)[min(len(values) - 1, int(len(values) * share))], 3) if values else None
