import os

import hypothesis
import pytest

from capmix.mini.image_tower import LiteTower

# Tests load only local models; without this, an unreachable hub would be retried for minutes.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tests must not fail on a busy machine: speed is measured in benchmarks/.
hypothesis.settings.register_profile("capmix", deadline=None, max_examples=60)
hypothesis.settings.load_profile("capmix")


@pytest.fixture(scope="session")
def tower() -> LiteTower:
    return LiteTower()
