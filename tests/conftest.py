import os
from collections.abc import Iterator

import hypothesis
import pytest
from browser import NEEDS_CHROMIUM, Opened, one_browser

from capmix.mini.image_tower import LiteTower

# Tests load only local models; without this, an unreachable hub would be retried for minutes.
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # torch's threads of several workers would spin
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests must not fail on a busy machine: speed is measured in benchmarks/.
hypothesis.settings.register_profile("capmix", deadline=None, max_examples=60)
hypothesis.settings.load_profile("capmix")


@pytest.fixture(scope="session")
def tower() -> LiteTower:
    return LiteTower()


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """Do not wait for the disk: tests kill processes, which lose nothing, and not the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # fails for the same descriptors
        yield


@pytest.fixture(scope="module")
def opened() -> Iterator[Opened]:
    with one_browser() as found:
        yield found


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="fail if a test is skipped")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reasons = [mark.kwargs.get("reason") for mark in item.iter_markers("skipif")]
        if NEEDS_CHROMIUM in reasons:
            item.add_marker(pytest.mark.browser)


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and session.config.getoption("--no-skips") and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
