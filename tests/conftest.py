import pytest

from capmix.mini.image_tower import LiteTower


@pytest.fixture(scope="session")
def tower() -> LiteTower:
    return LiteTower()
