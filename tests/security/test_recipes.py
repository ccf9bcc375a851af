"""Untrusted recipes and pipeline files."""

from pathlib import Path

import duckdb
import pytest

from capmix.errors import UserError
from capmix.mix.expression import parse
from capmix.mix.plan import locked_connection
from capmix.mix.recipe import load_recipe
from capmix.pipeline.config import load_pipeline


@pytest.mark.parametrize(
    "condition",
    [
        "read_text('/etc/passwd') is null",
        "glob('/etc/*') is null",
        "query('select 1') is null",
        "exists(from duckdb_secrets())",
        "uid in (from duckdb_settings() select name)",
        "other.uid = 'x'",
        "main.batch.uid = 'x'",
        "columns('.*') is null",
        "$1 = 'x'",
        "getenv('HOME') = 'x'",
        "current_setting('home_directory') = 'x'",
        "getvariable('x') is null",
        "write_log('x') is null",
        "nextval('x') > 0",
        "json_execute_serialized_sql('x') is null",
        "random() < 0.5",
        "now() is null",
        "count(*) > 1",
        "row_number() over () > 1",
        "list_transform([1], x -> x) = [1]",
        "true; install httpfs",
        "true) from samples; attach 'x.db' as x; select (true",
    ],
)
def test_a_condition_reaches_nothing_but_its_own_row(condition: str) -> None:
    with pytest.raises(UserError, match=r"^clause 1: "):
        parse(condition, "clause 1")


@pytest.mark.parametrize(
    "statement",
    [
        "select * from read_text('/etc/passwd')",
        "select * from read_csv('/etc/passwd')",
        "select * from glob('/etc/*')",
        "select * from 'https://127.0.0.1/x.parquet'",
        "select * from '{folder}/x.csv'",
        "copy (select 1) to '{folder}/written.csv'",
        "export database '{folder}/exported'",
        "attach '{folder}/x.db' as x",
        "install httpfs",
        "load httpfs",
        "load '{folder}/x.duckdb_extension'",
        "set enable_external_access = true",
        "reset enable_external_access",
        "set autoload_known_extensions = true",
        "set temp_directory = '{folder}'",
    ],
)
def test_the_connection_of_recipes_reaches_no_file_network_or_extension(
    statement: str, tmp_path: Path
) -> None:
    """A second line of defence, for SQL that the parser might accept by mistake."""
    (tmp_path / "x.csv").write_text("a\n1\n")
    with pytest.raises(duckdb.Error):
        locked_connection().execute(statement.format(folder=tmp_path)).fetchall()
    assert [path.name for path in tmp_path.rglob("*")] == ["x.csv"]


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir ['{proof}']",
        "!!python/object/new:os.mkdir ['{proof}']",
        "!!python/name:os.mkdir ''",
        "!!python/module:os ''",
        "!custom {{a: 1}}",
    ],
)
def test_yaml_tags_make_no_objects(value: str, tmp_path: Path) -> None:
    proof, file = tmp_path / "proof", tmp_path / "x.yaml"
    file.write_text(f"pool: {value.format(proof=proof)}\nwork: w\n")
    for load in (load_recipe, load_pipeline):
        with pytest.raises(UserError, match="invalid YAML"):
            load(str(file))
    assert not proof.exists()
