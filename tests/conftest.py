import os

import hypothesis
import pytest

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # tests load local models alone; a hub would be asked for minutes
)
# A busy machine is no failure: speed is measured in benchmarks/.
hypothesis.settings.register_profile("capmix", deadline=None)
hypothesis.settings.load_profile("capmix")

from capmix.mini.image_tower import LiteTower


@pytest.fixture(scope="session")
def tower() -> LiteTower:
    return LiteTower()
