"""A run as one page: self-contained, without scripts, in light and dark."""

import html
import importlib.resources
import string
from collections.abc import Iterable, Sequence
from typing import Any, Final

from relay.sim.lifelines import Course, Lifeline

LINES_MAX: Final = 80  # requests that get a line of their own
WIDTH: Final = 1_072
LEFT: Final = 74  # for the names beside a chart
_STEPS_S: Final = (1, 5, 10, 30, 60, 300, 600, 1_800, 3_600, 7_200, 14_400, 43_200, 86_400, 172_800, 604_800)


def page(course: Course) -> str:
    """The whole page."""
    numbers = course.numbers()
    template = string.Template((importlib.resources.files("relay.sim") / "page.html").read_text("utf-8"))
    rates = [
        (later.at, (later.carried - sooner.carried) / (later.at - sooner.at))
        for sooner, later in zip(course.samples, course.samples[1:], strict=False)
    ]
    chosen = _chosen(course.lifelines)
    return template.substitute(
        title=html.escape(course.title),
        subtitle=html.escape(
            f"{clock(course.duration_s)} in virtual time, played in {numbers['real_s']:.0f} s · {len(course.edges)} "
            f"edge{'s' * (len(course.edges) > 1)} · seed {course.seed}"
        ),
        tiles=_tiles(numbers),
        bin=clock(course.duration_s / max(1, len(course.samples))),
        throughput=_chart(course, rates, "flow", "B/s"),
        flight=_chart(course, [(one.at, float(one.under_way)) for one in course.samples], "flight", "B"),
        lanes=_lanes(course),
        shown=(
            f"All {len(chosen)} of them." if len(chosen) == len(course.lifelines)
            else f"{len(chosen)} of {len(course.lifelines)}: those in trouble, and those that took longest."
        ),
        lifelines=_lifelines(chosen),
    )


def clock(seconds: float) -> str:
    """As people write it: 350 ms, 12.5 s, 4 min 5 s, 3 h 20 min."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    if seconds < 3_600:
        return f"{int(seconds) // 60} min {int(seconds) % 60} s".replace(" 0 s", "")
    return f"{int(seconds) // 3_600} h {int(seconds) % 3_600 // 60} min".replace(" 0 min", "")


def _tiles(numbers: dict[str, Any]) -> str:
    def spread(name: str) -> str:
        middle, high = numbers[f"{name}_p50_s"], numbers[f"{name}_p95_s"]
        return "none" if middle is None else f"{clock(middle)} <small>p95 {clock(high)}</small>"

    failed, up = sum(numbers["failed"].values()), _amount(numbers["bytes_up"], "B")
    tiles = [
        ("delivered whole", f"{numbers['delivered']} <small>of {numbers['prompts']}</small>", ""),
        ("lost", str(numbers["lost"]), "bad" if numbers["lost"] else "good"),
        ("called twice", str(numbers["doubled"]), "bad" if numbers["doubled"] else "good"),
        ("interrupted", str(numbers["interrupted"]), ""),
        *([("ended otherwise", str(failed), "bad")] if failed else []),
        ("links lost", str(numbers["drops"]), ""),
        ("streams resumed", str(numbers["resumes"]), ""),
        ("first token", spread("first_token"), ""),
        ("delay of a token", spread("token_delay"), ""),
        ("way back to stream", spread("resume"), ""),
        ("bytes down", f"{_amount(numbers['bytes_down'], 'B')} <small>{up} up</small>", ""),
    ]
    return "".join(
        f'<div><dt>{name}</dt><dd{f" class={kind}" if kind else ""}>{value}</dd></div>\n' for name, value, kind in tiles
    )


def _amount(value: float, unit: str) -> str:
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def _x(course: Course, at: float) -> float:
    return round(LEFT + (WIDTH - LEFT) * min(1.0, at / course.duration_s), 2)


def _svg(height: float, parts: Iterable[str], label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _time_axis(course: Course, top: float, bottom: float) -> list[str]:
    step = next((step for step in _STEPS_S if course.duration_s / step <= 12), _STEPS_S[-1])
    parts = []
    for number in range(int(course.duration_s // step) + 1):
        x = _x(course, number * step)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{top:g}" y2="{bottom:g}"/>')
        parts.append(f'<text x="{x}" y="{bottom + 15:g}" text-anchor="middle">{_moment(number * step, step)}</text>')
    return parts


def _moment(at: float, step: float) -> str:
    hours, minutes, rest = int(at) // 3_600, int(at) % 3_600 // 60, int(at) % 60
    return f"{hours}:{minutes:02}" if step >= 60 else f"{hours}:{minutes:02}:{rest:02}"


def _faults(course: Course, top: float, bottom: float) -> list[str]:
    return [
        f'<line class="fault" x1="{_x(course, at)}" x2="{_x(course, at)}" y1="{top:g}" y2="{bottom:g}">'
        f"<title>{_moment(at, 1)} {html.escape(what)}</title></line>" for at, what in course.faults
    ]


def _chart(course: Course, points: Sequence[tuple[float, float]], kind: str, unit: str) -> str:
    height, top = 150.0, 8.0
    highest = _round_up(max((value for _, value in points), default=0.0))
    parts = _time_axis(course, top, height)
    for share in (0.5, 1.0):
        y = height - share * (height - top)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{y:g}" y2="{y:g}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:g}" text-anchor="end">{_amount(highest * share, unit)}</text>')
    line = " ".join(f"{_x(course, at)},{height - value / highest * (height - top):.1f}" for at, value in points)
    if points:
        first, last = _x(course, points[0][0]), _x(course, points[-1][0])
        parts.append(f'<polygon class="{kind}" points="{first},{height:g} {line} {last},{height:g}"/>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH}" y1="{height:g}" y2="{height:g}"/>')
    return _svg(height + 22, [*parts, *_faults(course, top, height)], "over time")


def _round_up(value: float) -> float:
    """To the next 1, 2 or 5 of its power of ten."""
    power = 1.0
    while power * 10 <= value:
        power *= 10
    return next((factor * power for factor in (1.0, 2.0, 5.0) if value <= factor * power), 10.0 * power)


def _lanes(course: Course) -> str:
    tall, parts = 30.0, []
    bottom = 4 + tall * len(course.edges)
    for row, edge in enumerate(course.edges):
        y = 4 + tall * row
        parts.append(f'<rect class="lane" x="{LEFT}" y="{y:g}" width="{WIDTH - LEFT}" height="{tall - 6:g}"/>')
        parts.append(f'<text class="name" x="{LEFT - 8}" y="{y + 16:g}" text-anchor="end">{html.escape(edge)}</text>')
        parts += [_bar(course, "away", one, y, tall - 6) for one in course.apart.get(edge, ())]
        for line in course.lifelines:
            if line.edge == edge:
                end = course.duration_s if line.ended is None else line.ended
                begun = end if line.began is None else line.began
                parts.append(_bar(course, "wait", (line.asked, begun), y + 7, tall - 20))
                parts.append(_bar(course, "go" if line.whole else "lost", (begun, end), y + 5, tall - 16, _tells(line)))
                parts += [
                    f'<circle class="resume" cx="{_x(course, back)}" cy="{y + 3:g}" r="3"/>' for _, back in line.gaps
                ]
        for at, whose in course.drops:
            if whose == edge and at <= course.duration_s:
                x = _x(course, at)
                parts.append(f'<line class="drop" x1="{x}" x2="{x}" y1="{y + tall - 11:g}" y2="{y + tall - 6:g}"/>')
    return _svg(bottom + 18, [*_time_axis(course, 4, bottom), *parts, *_faults(course, 4, bottom)], "edges over time")


def _bar(
    course: Course, kind: str, span: tuple[float, float], y: float, height: float, title: str = ""
) -> str:
    left = _x(course, span[0])
    width = max(1.0, _x(course, span[1]) - left)
    inside = f"<title>{title}</title>" if title else ""
    return f'<rect class="{kind}" x="{left}" y="{y:g}" width="{width:.2f}" height="{height:g}">{inside}</rect>'


def _tells(line: Lifeline) -> str:
    length = "" if line.ended is None else f", {clock(line.ended - line.asked)}"
    return html.escape(f"prompt {line.number} at {_moment(line.asked, 1)}: {line.outcome or 'lost'}{length}")


def _chosen(lines: Sequence[Lifeline]) -> list[Lifeline]:
    """In order of time; if there are too many, those with the most trouble."""
    def trouble(line: Lifeline) -> tuple[bool, int, float]:
        return not line.whole, len(line.gaps), (line.ended or float("inf")) - line.asked

    return sorted(sorted(lines, key=trouble, reverse=True)[:LINES_MAX], key=lambda line: line.number)


def _lifelines(lines: Sequence[Lifeline]) -> str:
    tall, left, right, parts = 19.0, 190.0, 232.0, []
    wide = WIDTH - left - right
    for row, line in enumerate(lines):
        y = 4 + tall * row
        end = line.ended if line.ended is not None else max([line.asked + 1, *(back for _, back in line.gaps)])
        whole = max(end - line.asked, 1e-3)

        def bar(kind: str, start: float, stop: float, y: float = y, line: Lifeline = line, whole: float = whole) -> str:
            x = left + wide * (start - line.asked) / whole
            width = max(1.0, wide * (stop - start) / whole)
            return f'<rect class="{kind}" x="{x:.2f}" y="{y + 3:g}" width="{width:.2f}" height="11" rx="1.5"/>'

        begun = end if line.began is None else line.began
        parts.append(
            f'<text x="0" y="{y + 13:g}">{_moment(line.asked, 1)}</text>'
            f'<text class="name" x="66" y="{y + 13:g}">{html.escape(line.edge)} · {line.number}</text>'
        )
        parts.append(bar("wait", line.asked, begun))
        if line.began is not None:
            parts.append(bar("go" if line.outcome else "lost", begun, end))
        parts += [bar("gap", lost, back) for lost, back in line.gaps]
        first = "no answer" if line.began is None else f"first after {clock(line.began - line.asked)}"
        outcome = "" if line.whole else f" · {line.outcome or 'lost'}"
        parts.append(f'<text x="{WIDTH - right + 12:g}" y="{y + 13:g}">{html.escape(first + outcome)}</text>')
        parts.append(f'<text x="{WIDTH}" y="{y + 13:g}" text-anchor="end">{clock(whole)}</text>')
    return _svg(8 + tall * len(lines), parts, "requests")
