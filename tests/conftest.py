import os

import hypothesis
import pytest

from capmix.mini.image_tower import LiteTower

# Tests load local models alone; a hub that is not there would be asked for minutes.
os.environ["HF_HUB_OFFLINE"] = "1"
# A busy machine is no failure: speed is measured in benchmarks/.
hypothesis.settings.register_profile("capmix", deadline=None, max_examples=60)
hypothesis.settings.load_profile("capmix")


@pytest.fixture(scope="session")
def tower() -> LiteTower:
    return LiteTower()
