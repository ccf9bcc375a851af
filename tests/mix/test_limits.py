"""DuckDB in a notebook: without ipywidgets, any setting of its progress bar fails, even false."""

import subprocess
import sys
from pathlib import Path

CODE = """
import sys, types
sys.modules["ipywidgets"] = None
shell = types.SimpleNamespace(config={"IPKernelApp": {}})
sys.modules["IPython"] = types.ModuleType("IPython")
sys.modules["IPython"].get_ipython = lambda: shell
import duckdb
connection = duckdb.connect()
try:
    connection.execute("set enable_progress_bar = false")
except duckdb.InvalidInputException as error:
    print(error)
from pathlib import Path
from capmix.measure.diversity import Diversity
from capmix.mix.plan import locked_connection
Diversity(Path(sys.argv[1]), 1)
print(locked_connection().sql("select 42").fetchall())
"""


def test_recipes_and_measures_run_in_a_notebook_without_ipywidgets(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CODE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'ipywidgets' is missing" in done.stdout  # otherwise DuckDB did not detect a notebook
    assert done.stdout.endswith("[(42,)]\n")
