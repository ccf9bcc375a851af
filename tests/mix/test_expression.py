from pathlib import Path

import pytest
from samples import write_pool

from capmix.errors import UserError
from capmix.workspace import Workspace, open_workspace


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    write_pool(tmp_path / "pool", shards=2, samples=5)
    return open_workspace(str(tmp_path / "pool"), str(tmp_path / "work"))


@pytest.mark.parametrize(
    "where",
    [
        "(select count(*) from read_text('/etc/passwd')) > 0",
        "(select count(*) from read_csv('/etc/passwd')) > 0",
        "(select count(*) from read_parquet('https://127.0.0.1/x.parquet')) > 0",
        "getenv('HOME') = '/root'",
    ],
)
def test_a_recipe_reaches_no_file_and_no_network(
    work: Workspace, tmp_path: Path, where: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f'{{name: x, about: x, clauses: [{{source: raw, where: "{where}"}}]}}')
    with pytest.raises(UserError, match="recipe x, clause"):
        work.mix(str(path))


def test_the_order_of_shards_and_a_second_run_change_nothing(
    work: Workspace, tmp_path: Path
) -> None:
    work.mix("control-random", fraction=0.4)
    first = Path(work.store.path("subsets/control-raw-random40.parquet")).read_bytes()
    other = open_workspace(str(tmp_path / "pool"), str(tmp_path / "work2"))
    other.mix("control-random", fraction=0.4)
    second = Path(other.store.path("subsets/control-raw-random40.parquet")).read_bytes()
    assert first == second


def test_a_uid_in_two_shards_is_kept_once_where_asked_for(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", shards=1, samples=3)
    (pool / "00001.tar").write_bytes((pool / "00000.tar").read_bytes())
    work = open_workspace(str(pool), str(tmp_path / "work"))
    assert work.mix("raw").summary.kept == 6
    distinct = work.mix("raw", distinct="uid", out="once").summary
    assert (distinct.kept, distinct.dropped) == (3, {"repeats an earlier uid": 3})


def test_a_missing_stage_is_named(work: Workspace) -> None:
    with pytest.raises(UserError, match="no scores for raw: run `capmix score"):
        work.mix("raw-top")
