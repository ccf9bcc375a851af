import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from capmix.mini.image_tower import LiteTower


@pytest.fixture(scope="session")
def tower() -> LiteTower:
    return LiteTower()
