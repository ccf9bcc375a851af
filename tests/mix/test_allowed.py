"""SQL in recipes: the same results in every run, within memory and time limits."""

import json
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from parts import HandMade, Made, fresh_folder

from capmix.errors import UserError
from capmix.mix import limits
from capmix.mix.allowed import FUNCTIONS, NAMES, OWN, OWN_OF_TEXT, Size
from capmix.mix.expression import parse
from capmix.mix.recipe import Clause, Recipe

DOCS = Path(__file__).parents[2] / "docs/recipes.md"
OURS = {*OWN.split(), *OWN_OF_TEXT.split()}
ZONED = re.compile(r"WITH TIME ZONE|TIMESTAMPTZ")
WORD = re.compile(r'"?([a-z_0-9]+)"?\(')


def described(name: str) -> list[tuple[str, str, str, str]]:
    """Return, for each overload of a function, its kind, stability, types and macro definition."""
    with duckdb.connect() as connection:
        return connection.execute(
            "select function_type, coalesce(stability, ''), parameter_types::varchar, "
            "coalesce(macro_definition, '') from duckdb_functions() where function_name = ?",
            [name],
        ).fetchall()


@pytest.mark.parametrize("name", sorted(NAMES - OURS))
def test_an_allowed_function_is_there_and_gives_the_same_in_every_run(name: str) -> None:
    """Overloads for TIMESTAMPTZ may have stability "within query": only strptime with %z creates
    such values, and the time zone is UTC. Macros may expand to allowed functions or to list_aggr
    with a constant."""
    found = described(name)
    assert found or name == "if"
    for kind, stability, types, definition in found:
        if kind == "macro":
            inside = set(WORD.findall(definition.lower())) - {"and", "in", "cast", "coalesce"}
            assert inside <= NAMES | {"list_aggr", "case"}, definition
            assert all(s == "CONSISTENT" for one in inside for s in stabilities(one)), definition
        else:
            assert kind == "scalar", (name, kind)
            assert stability == "CONSISTENT" or ZONED.search(types), (name, stability, types)


def stabilities(name: str) -> set[str]:
    found = described(name)
    return {s for kind, s, types, _ in found if kind == "scalar" and not ZONED.search(types)}


def test_every_allowed_function_is_in_the_docs_and_of_one_kind() -> None:
    listed = DOCS.read_text("utf-8").split("## Functions")[1].split("\n## ")[0]
    rows = [row for row in listed.splitlines() if row.startswith("| ") and "`" in row]
    found = {row.split(" | ")[0].strip("| "): row.split(" | ")[1] for row in rows}
    words = {
        kind: set(re.findall(r"`([^`]+)`", text.replace("\\|", "|")))
        for kind, text in found.items()
    }
    expected = {kind: set(names.split()) for kind, names in FUNCTIONS.items()}
    assert {kind: words.get(kind) for kind in expected} == expected
    assert len(NAMES) == sum(len(names.split()) for names in FUNCTIONS.values())


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("ago(interval 1 day) is null", "no function 'ago' in recipes"),
        ("pg_sleep(1) is null", "no function 'pg_sleep'"),
        ("system.main.pg_sleep(1) is null", "no function 'pg_sleep'"),
        ("version() = 'x'", "no function 'version'"),
        ("pg_postmaster_start_time() is null", "no function 'pg_postmaster_start_time'"),
        ("#1 is null", "do not support columns by number"),
        ("levenstein(raw_text, 'x') < 3", "no function 'levenstein'"),
        ("damerau_levenshtein(raw_text, repeat('a', 100000)) > 0", "no function"),
        ("lenght(raw_text) > 3", "no function 'lenght' in recipes; did you mean 'length'?"),
        ("raw_text.upper() = 'X'", "no function 'upper'"),
        ("hash(uid) % 2 = 0", "no function 'hash'"),
        ("'2020-01-01'::TIMESTAMPTZ > '2019-01-01'", "do not support casts to timestamptz"),
        ("raw_text::BLOB is null", "do not support casts to blob"),
        ("raw_text collate nocase = 'x'", "do not support collations"),
        ("try(raw_text::INT) = 3", "do not support operator_try"),
        ("replace(raw_text, 'a', raw_text) = ''", "replace: argument 3 must be a literal"),
        ("regexp_replace(raw_text, '.', uid, 'g') = ''", "argument 3 must be a literal"),
        ("json_extract(raw_text, '$..*') is null", r"json_extract: \* is not supported in paths"),
        ("array_to_string([uid, key], raw_text) = ''", "argument 2 must be a literal"),
    ],
)
def test_what_changes_or_has_no_bound_is_refused(condition: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^clause 1: .*{message}"):
        parse(condition, "clause 1")


@pytest.mark.parametrize(
    "condition",
    [
        "raw_text || uid || key = ''",
        "key like 'a%' and key not like '_b' and key ilike 'c' and key like 'a!%' escape '!'",
        "key similar to '[a-z]+' or key ~ 'x' or key glob 'a*' or key ^@ 'a'",
        "width + 1 - 2 * 3 / 4 // 5 % 6 ** 2 > -1 or (width & 3 | 4) << 1 >= 2 ^ 3",
        "width between 1 and 5 or width in (1, 2) or width not in (3) or width is not null",
        "not (width is distinct from 3) and case when width > 3 then true else false end",
        "cast(width as varchar) = '3' and try_cast(key as double[]) is null and '3'::INT = 3",
        "[1, 2][1] = 1 and {'a': 1}.a = 1 and array[1, 2][1:1] = [1] and list_count([1]) = 1",
        "extract(year from date '2020-1-1' + interval 3 day) = 2020 and year('2020-1-1'::date) > 1",
        "trim(both 'x' from key) = substring(key from 1 for 2) or position('a' in key) = 1",
        "coalesce(key, uid) = ifnull(key, uid) and nullif(key, 'x') = if(true, key, uid)",
        "regexp_replace(key, '[0-9]+', '#', 'g') = '#' and replace(key, 'a', 'bb') = 'bb'",
        "json_extract_string(raw_text, '$.a') = 'x' or raw_text ->> '$.a' = 'y'",
        "raw_text = 'capmix_threshold_0_' or top(raw_score, 0.5)",
        "md5(key) < 'f' and sha256(key) > '0' and length(key) = 3 and round(draw, 2) = 0.5",
    ],
)
def test_operators_and_plain_sql_work(condition: str) -> None:
    here = HandMade(fresh_folder(), {"00000": [Made("a" * 32, raw_score=0.1)]})
    clause = Clause(source="raw", where=f"coalesce({condition}, true) or true")
    here.mix(Recipe(name="plain", about="", clauses=[clause]))
    assert len(here.rows()) == 1
    again = parse(parse(condition, "x").sql, "x")
    assert again.sql == parse(condition, "x").sql


HOSTILE = {
    "doubling": "length(" + "||".join(["raw_text"] * 25) + ") > 0",
    "replaced": "length(replace(replace(raw_text, 'a', 'bbbbbb'), 'b', 'cccccc')) > 0",
    "lists": "length([" + ", ".join(["string_split(raw_text, '')"] * 12) + "]) > 0",
    "upper": "length(" + "upper(lower(" * 3 + "raw_text" + "))" * 3 + ") > 0",
    "quoted": "length([[[raw_text]::varchar]::varchar]::varchar) > 0",
    "regex": "length(regexp_replace(raw_text, '(.)', '\\1\\1\\1\\1\\1\\1', 'g')) > 0",
    "json": "json_extract(raw_text, '$.a') is null or true",
    "translated": "length(translate(raw_text, 'a', '\U0001f600')) > 0",
    "pieces": "split_part(raw_text, '', 5) = '' or list_count(string_split(raw_text, '')) > 0",
}
MEASURE = """
import json, sys
from parts import HandMade, Made
from pathlib import Path
from capmix.mix.recipe import Clause, Recipe

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024

samples = [Made(f"{i:032x}", raw=chr(97 + i % 26) * 2_000) for i in range(2048)]
here = HandMade(Path(sys.argv[1]), {"00000": samples})
for name, where in {"plain": "length(raw_text) > 0", **json.loads(sys.argv[2])}.items():
    recipe = Recipe(name=name, about="", clauses=[Clause(source="raw", where=where)])
    here.mix(recipe, name, workers=1)
    print(name, peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's peak memory")
def test_allowed_functions_stay_within_memory_whatever_is_made_of_them(tmp_path: Path) -> None:
    """DuckDB processes 2,048 texts of 2,000 characters at once: 4 MB per step, 70 MB as lists."""
    code = [sys.executable, "-c", MEASURE, str(tmp_path), json.dumps(HOSTILE)]
    path = ":".join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        code, capture_output=True, text=True, env={"PYTHONPATH": path}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    peaks = dict(line.split() for line in done.stdout.splitlines())
    assert peaks.keys() == {"plain", *HOSTILE}
    assert int(peaks["pieces"]) - int(peaks["plain"]) < 250, peaks


@pytest.mark.parametrize(
    "condition",
    [
        "||".join(["raw_text"] * 40) + " = ''",
        "replace(replace(raw_text, 'a', '" + "b" * 30 + "'), 'b', '" + "c" * 30 + "') = ''",
        "upper(" * 9 + "raw_text" + ")" * 9 + " = ''",
        "replace('" + "a" * 3000 + "', 'a', '" + "b" * 3000 + "') = ''",
        "string_split(string_split(string_split(raw_text, '')[1], '')[1], '') = []",
    ],
)
def test_an_expression_whose_texts_could_grow_without_end_is_refused(condition: str) -> None:
    with pytest.raises(UserError, match="clause 1: its texts could grow to .* times the size of a"):
        parse(condition, "clause 1")


def test_a_batch_that_takes_too_long_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECONDS", 0.02)
    samples = [Made(f"{i:032x}", raw=f"{i} a" * 3000) for i in range(3000)]
    here = HandMade(fresh_folder(), {"00000": samples})
    slow = " or ".join(f"regexp_matches(raw_text, '{n}.*b.*c$')" for n in range(300))
    recipe = Recipe(name="slow", about="", clauses=[Clause(source="raw", where=slow)])
    with pytest.raises(UserError, match=r"^recipe slow\b.*: its SQL took over 0\.02 s for some"):
        here.mix(recipe)


def test_what_duckdb_itself_takes_is_bounded() -> None:
    from capmix.mix.plan import locked_connection

    with locked_connection() as connection:
        (limit,) = connection.execute("select current_setting('memory_limit')").fetchone()
        assert limit == "953.6 MiB"
        (scratch,) = connection.execute("select current_setting('temp_directory')").fetchone()
        assert scratch == ""
    small = {"memory_limit": "10MB", "temp_directory": "", "threads": 1}
    with (
        duckdb.connect(config=small) as connection,
        pytest.raises(UserError, match=r"^recipe x: its SQL needs more than 1GB"),
        limits.limited(connection, "recipe x"),
    ):
        sql = "select sha256(range::varchar) as s from range(300_000) order by s"
        connection.execute(sql).fetchone()


def test_sizes_are_bounds_of_what_duckdb_makes() -> None:
    """For each kind of growth, with the texts that grow most."""
    cases = [
        ("upper(t)", "\u0149" * 50),
        ("lower(t)", "\u0130" * 50),
        ("nfc_normalize(t)", "\U0001d160" * 50),
        ("replace(t, 'a', 'bcd')", "a" * 50),
        ("regexp_replace(t, '(a)', 'x\\1\\1\\1', 'g')", "a" * 50),
        ("regexp_replace(t, '', 'xyz', 'g')", "a" * 50),
        ("translate(t, 'a', '\U0001f600')", "a" * 50),
        ("[t]::varchar", "'\\" * 50),
        ("json_extract(t, '$.a')::varchar", json.dumps({"a": "\x01" * 50})),
        ("array_to_string(string_split(t, ''), 'xyz')", "a" * 50),
        ("concat_ws('xyz', t, t, t)", "a"),
        ("strip_accents(t)", "\ufb03" * 50),
    ]
    with duckdb.connect() as connection:
        for expression, text in cases:
            sql = f"select strlen(({expression})::varchar) from (select ? as t)"
            (made,) = connection.execute(sql, [text]).fetchone()
            size = parse(expression, "x").size
            assert made <= size.times * len(text.encode()) + size.extra, expression
    assert parse("width > 5", "x").size.times == 1
    assert Size(2, 3) * 2 + Size(1, 1) == Size(5, 7)
