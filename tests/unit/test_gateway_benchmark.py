"""The arithmetic of `scripts/bench gateway`, from results that were written by hand."""

from typing import Any

import pytest

from benchmarks import gateway_soak
from benchmarks.gateway_harness import rows_of
from benchmarks.gateway_soak import soaked
from benchmarks.gateway_streams import PACE_S, Paced
from benchmarks.gateway_streams import rows_of as stream_rows
from benchmarks.session_path import row_of


def run(**numbers: float) -> dict[str, float]:
    return {"bad_status": 0, "conn_err": 0, "ok": 100, **numbers}


def result(own: dict[str, float], *more: dict[str, float]) -> dict[str, Any]:
    peer = run(rps=100, cpu_us_req=9_000, p50=10, p99=180)
    runs = {"direct": [run(rps=9_000, p50=0.2, p99=0.3)], "litellm": [peer], "own": [own, *more]}
    return {"runs": {"json_c16": runs}, "end_rss": {"own": 100.0}}


def test_a_ratio_is_over_one_where_ours_is_better_and_the_middle_round_counts() -> None:
    rounds = [run(rps=rate, cpu_us_req=150, p50=1, p99=2.3) for rate in (9_000, 6_000, 100)]
    rate, cpu, added, memory = rows_of(result(*rounds), ["litellm"])
    assert (rate.ours, rate.ratio, rate.wanted) == (6_000, 60, 60)
    assert (cpu.ours, cpu.ratio, cpu.wanted) == (150, 60, None)
    assert added.ours == pytest.approx(2.0) and added.ratio == pytest.approx(2.0) and added.wanted == 1.0
    assert memory.ratio == pytest.approx(1.2)


def test_no_figure_counts_if_an_answer_of_ours_was_not_good() -> None:
    with pytest.raises(SystemExit, match="json_c16: 1 answers"):
        rows_of(result(run(rps=6_000, cpu_us_req=150, p50=1, p99=2, bad_status=1)), ["litellm"])


def test_an_event_is_late_once_the_next_one_was_due() -> None:
    paced = Paced()
    paced.add([100.0, 100.0 + PACE_S, 100.0 + 3.5 * PACE_S])  # the third is due after two
    assert paced.events == [3] and paced.late == 1
    assert paced.behind == pytest.approx([0, 0, 1.5 * PACE_S])


def test_an_event_that_does_not_come_is_lost() -> None:
    whole, cut = Paced(), Paced()
    whole.add([0.0, PACE_S, 2 * PACE_S])
    cut.add([0.0, PACE_S])
    lost, *_ = stream_rows(cut, whole, 1)
    assert (lost.ours, lost.ratio) == (1, 0)
    lost, *_ = stream_rows(whole, whole, 1)
    assert (lost.ours, lost.ratio) == (0, 1)


def test_a_session_may_cost_half_as_much_again_as_https() -> None:
    good, bad = row_of([149, 149, 149], [100, 100, 100]), row_of([151, 151, 151], [100, 100, 100])
    assert good.ratio is not None and bad.ratio is not None and good.wanted is not None
    assert bad.ratio < good.wanted < good.ratio


def test_a_soak_makes_the_requests_that_it_says_and_its_largest_look_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    memory = {100: 90.0, 600: 99.0}

    def ask(count: int) -> int:
        asked.append(min(count, 30))  # fewer than were wanted
        return asked[-1]

    monkeypatch.setattr(gateway_soak, "resident_mib", lambda pid: memory.get(sum(asked), 92.0))
    row = soaked(1, ask, first=100, more=1_000)
    assert sum(asked) == 1_100
    assert row.ours == 99.0 and row.peer == pytest.approx(94.5) and row.ratio is not None and row.ratio < 1
