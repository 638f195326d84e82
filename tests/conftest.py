"""Settings for every test: Hypothesis profiles, that continuous integration skips nothing of ours, and that radios are
used by those who ask for them.
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

import store.keys
import store.sealed
from tests.support.radios import adapters
from tests.support.stores import CachedStretch

# The gates run the same examples each time, so that a red run means a change; `long` looks for new ones.
# No deadlines: a busy machine is no counter-example.
settings.register_profile("quick", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("default", max_examples=100, deadline=None, derandomize=True)
settings.register_profile(
    "long", max_examples=2000, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")


@pytest.fixture(scope="session", autouse=True)
def stretched_once() -> Iterator[None]:
    """Argon2id of the same passphrase, cost and salt is reckoned once in a run: it takes 0.2 s and 64 MiB a time."""
    stretch = CachedStretch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.keys, "stretch", stretch)
        patch.setattr(store.sealed, "stretch", stretch)
        yield


# The only reason for which a test may be skipped where CI is set: files from outside the repository.
OUTSIDE = "outside vectors are absent"  # as tests/support/outside.py says it


_LEFT_OUT = pytest.StashKey[int]()


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if OUTSIDE not in reason:
            report.outcome = "failed"
            report.longrepr = f"skipped where CI is set, which counts as a failure: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `hardware` run by `-m hardware` alone; asked for where there are no radios, they do not pass."""
    on_radios = [item for item in items if item.get_closest_marker("hardware")]
    if not on_radios:
        return
    if "hardware" not in config.option.markexpr:
        config.hook.pytest_deselected(items=on_radios)
        items[:] = [item for item in items if item not in on_radios]
        config.stash[_LEFT_OUT] = len(on_radios)
    elif not config.option.collectonly and isinstance(missing := adapters(), str):
        raise pytest.UsageError(f"-m hardware: {missing}")


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    left_out = config.stash.get(_LEFT_OUT, 0)
    return [f"{left_out} tests need two Bluetooth radios and were left out: pytest -m hardware"] if left_out else []
