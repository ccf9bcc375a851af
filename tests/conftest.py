import os

import pytest

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # tests load local models alone; a hub would be asked for minutes
)

from capmix.mini.image_tower import LiteTower


@pytest.fixture(scope="session")
def tower() -> LiteTower:
    return LiteTower()
