"""Settings for every test: Hypothesis profiles, and the rule that continuous integration skips nothing of ours."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

import store.keys
import store.sealed
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
