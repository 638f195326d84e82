"""Settings for every test: Hypothesis profiles, that continuous integration skips nothing of ours, and that radios are
used by those who ask for them.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import store.keys
import store.sealed
from tests.support.gateway_lab import make_folder
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


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gateway's folder as `make_folder` makes it, for all tests: to be copied."""
    return make_folder(tmp_path_factory.mktemp("made") / "gateway")


# The only reason for which a test may be skipped where CI is set: files from outside the repository.
OUTSIDE = "outside vectors are absent"  # as tests/support/outside.py says it


_LEFT_OUT = pytest.StashKey[list[str]]()
_NEEDS = {
    "hardware": "two Bluetooth radios and were left out: pytest -m hardware",
    "spire": "a real SPIRE and were left out: scripts/test long",
    "opa": "a real OPA and were left out: scripts/test long",
}


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
    """Tests of what most machines lack run by their mark alone; radios that are asked for and missing fail the run."""
    marked = {mark: [item for item in items if item.get_closest_marker(mark)] for mark in _NEEDS}
    left_out = {mark: found for mark, found in marked.items() if found and mark not in config.option.markexpr}
    if dropped := [item for found in left_out.values() for item in found]:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]
    config.stash[_LEFT_OUT] = [f"{len(found)} tests need {_NEEDS[mark]}" for mark, found in left_out.items()]
    asked = marked["hardware"] and "hardware" not in left_out and not config.option.collectonly
    if asked and isinstance(missing := adapters(), str):
        raise pytest.UsageError(f"-m hardware: {missing}")


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    return config.stash.get(_LEFT_OUT, [])
