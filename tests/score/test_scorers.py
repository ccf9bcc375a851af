from pathlib import Path

import pytest
from samples import write_pool

from capmix.errors import UserError
from capmix.workspace import open_workspace


def test_a_scorer_whose_columns_are_those_of_another_is_refused(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", shards=1, samples=2)
    work = open_workspace(str(pool), str(tmp_path / "work"))
    (tmp_path / "work/scores/MINI/raw").mkdir(parents=True)
    with pytest.raises(UserError, match="scorer 'mini': .* scorer 'MINI' .S_score_MINI"):
        work.score(model="mini")
