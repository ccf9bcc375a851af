"""Plan a recipe before it runs: check its expressions and look up its columns."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import duckdb

from capmix.errors import UserError
from capmix.mix import template
from capmix.mix.advice import about_annotation, about_scores
from capmix.mix.allowed import Size
from capmix.mix.columns import FIELD, Column, is_text, other_owner
from capmix.mix.expression import LIST_COLUMN, Expression, PoolScale, Threshold, bounded, parse
from capmix.mix.functions import TYPES, add_bound, add_functions
from capmix.mix.limits import MEMORY, limited
from capmix.mix.recipe import Clause, Recipe
from capmix.mix.sampling import SCORE
from capmix.settings.base import did_you_mean
from capmix.storage.database import without_progress_bar
from capmix.storage.layout import FIELDS, RAW
from capmix.storage.names import no_captions

ALWAYS = ("uid", "key", "shard")
# The first 52 bits of sha256("draw/<seed>/<uid>") over 2^52.
DRAW = "(('0x' || sha256('{name}/{seed}/' || uid)[1:13])::UBIGINT / pow(2, 52))"


@dataclass(frozen=True)
class ClausePlan:
    """A clause whose condition and weight have been checked."""

    clause: Clause
    where: Expression
    weight: Expression
    text: Expression | None = None
    logit: Expression | None = None

    def scaled(self, lines: Mapping[PoolScale, tuple[float, float]]) -> "ClausePlan":
        """Return the clause with the lines of its scales filled in."""
        logit = None if self.logit is None else self.logit.scaled(lines)
        where, weight = self.where.scaled(lines), self.weight.scaled(lines)
        return replace(self, where=where, weight=weight, logit=logit)

    def __str__(self) -> str:
        return _shown(self.clause)


@dataclass(frozen=True)
class RecipePlan:
    """A recipe checked against the columns of a work directory.

    `columns` are those that the result depends on, and `lists` the names of the uid-list columns
    that the recipe uses. `option` prefixes errors if the plan is for a condition of an option
    instead of a recipe.
    """

    recipe: Recipe
    steps: list[ClausePlan]
    columns: dict[str, Column]
    lists: frozenset[str]
    seed: int
    option: str = ""

    @property
    def place(self) -> str:
        """The prefix of error messages."""
        return self.option or f"recipe {self.recipe.name}"

    @property
    def functions(self) -> frozenset[str]:
        return frozenset().union(*(e.functions for e in self._expressions()))

    @property
    def thresholds(self) -> list[Threshold]:
        found = [t for e in self._expressions() for t in e.thresholds.values()]
        return list(dict.fromkeys(found))

    @property
    def is_of_pool(self) -> bool:
        """Whether an expression depends on more samples than the row's own."""
        return bool(self.thresholds or self.scales)

    @property
    def scales(self) -> list[PoolScale]:
        """The scales of all expressions and thresholds that are not filled in."""
        found = [one for e in self._expressions() for one in e.scales.values()]
        return list(dict.fromkeys(found))

    def scaled(self, lines: Mapping[PoolScale, tuple[float, float]]) -> "RecipePlan":
        """Return the plan with the line of each scale (see Spread.line) filled in."""
        return replace(self, steps=[step.scaled(lines) for step in self.steps])

    @property
    def of_rows(self) -> frozenset[str]:
        """The columns that the clauses need once the thresholds are known."""
        return frozenset().union(*(e.of_rows for e in self._expressions()))

    @property
    def named(self) -> frozenset[str]:
        """All columns that the clauses use, including those of thresholds."""
        return frozenset().union(*(e.columns for e in self._expressions()))

    def sql(
        self, values: Mapping[Threshold, float], with_text: bool = True, with_logits: bool = True
    ) -> str:
        """Return the query that evaluates all clauses for each row of `batch`, in order.

        Its columns are booleans c0, c1, ...: whether clause i holds. For clauses with a text
        template they also include the texts t<i>, and, if any clause has a weight, the weights w0,
        w1, ... For a recipe that draws rows, `with_logits` adds the logits g0, g1, ... and the md5
        of the uid, uid_digest. Unless the recipe keeps samples without text or `with_text` is
        False, a clause holds only if its text exists.
        """
        asks = with_text and self.recipe.without_text == "drop"
        columns = []
        for i, step in enumerate(self.steps):
            holds = f"coalesce(({step.where.filled(dict(values))})::BOOLEAN, false)"
            text = f"{step.clause.source}_text" if step.text is None else f"({step.text.sql})"
            columns.append(f"{holds} {f'and {text} is not null' if asks else ''} as c{i}")
            if step.text is not None:
                columns.append(f"case when {holds} then ({step.text.sql}) end as t{i}")
        if self.is_weighted:
            for i, step in enumerate(self.steps):
                columns.append(f"({step.weight.filled(dict(values))})::DOUBLE as w{i}")
            columns.append(f"{DRAW.format(name='repeat', seed=self.seed)} as repeat_draw")
        if self.draws and with_logits:
            for i, step in enumerate(self.steps):
                if step.logit is not None:
                    columns.append(f"({step.logit.filled(dict(values))})::FLOAT as g{i}")
            columns.append("md5(uid) as uid_digest")
        return f"select {', '.join(columns)}\nfrom {self.rows(self.of_rows)}"

    def value_sql(self, of: Threshold | PoolScale) -> str:
        """Return the query for the values, FLOAT, that a threshold or scale is computed from."""
        value = of.sql if isinstance(of, Threshold) else of.value
        return f"select ({value})::FLOAT as v from {self.rows(of.columns)}"

    def rows(self, names: Collection[str]) -> str:
        """Return the FROM item for expressions that use the columns `names`."""
        if "draw" not in names:
            return "batch as samples"
        draw = DRAW.format(name="draw", seed=self.seed)
        return f"(select *, {draw}::FLOAT as draw from batch) as samples"

    def source_of(self, step: ClausePlan) -> str:
        """Return the source of a clause without the suffix for its caption: blip2 for
        blip2_best."""
        folder = self.columns[f"{step.clause.source}_text"].folder
        return folder.rpartition("/")[2] if "/" in folder else step.clause.source

    @property
    def size(self) -> Size:
        """A bound on the bytes that all expressions create per row."""
        return sum((one.size for one in self._expressions()), Size())

    @property
    def composes(self) -> bool:
        """Whether a clause has a text template."""
        return any(step.text is not None for step in self.steps)

    @property
    def is_weighted(self) -> bool:
        return any(step.clause.weight != "1" for step in self.steps)

    @property
    def draws(self) -> bool:
        """Whether the recipe draws its rows (`sample`)."""
        return self.recipe.sample is not None

    def _expressions(self) -> list[Expression]:
        return [e for step in self.steps for e in expressions_of(step)]


def expressions_of(step: ClausePlan) -> list[Expression]:
    """Return the expressions of a clause."""
    return [e for e in (step.where, step.weight, step.text, step.logit) if e is not None]


def names_of(recipe: Recipe) -> set[str]:
    """Return the names of the columns that a recipe uses; the columns need not exist.

    Raises UserError for an expression that is not valid in recipes.
    """
    found = {recipe.distinct} if recipe.distinct is not None else set()
    for clause in recipe.clauses:
        place = _place(recipe, clause)
        found |= parse(clause.where, place).columns | {f"{clause.source}_text"}
        found |= parse(clause.weight, f"{place}, weight '{clause.weight}'").columns
        if clause.text is not None:
            of_text = parse(template.as_sql(clause.text), place).columns
            found |= of_text | {f"{name}_text" for name in of_text}
        if (logit := _logit(recipe, clause, place)) is not None:
            found |= logit.columns
    return found


def _logit(recipe: Recipe, clause: Clause, place: str) -> Expression | None:
    """Parse the logit of a clause's rows, in which `score` is the score of the clause's text."""
    if recipe.sample is None:
        return None
    score = {SCORE: f"{clause.source}_score"}
    return parse(recipe.sample.logit, f"{place}, logit '{recipe.sample.logit}'", score)


def _place(recipe: Recipe, clause: Clause) -> str:
    return f"recipe {recipe.name}, clause '{_shown(clause)}'"


def _shown(clause: Clause) -> str:
    text = "" if clause.text is None else f" as {clause.text!r}"
    return f"{clause.source}{text} where {clause.where}"


def make_plan(
    recipe: Recipe, columns: Mapping[str, Column], lists: Collection[str], seed: int
) -> RecipePlan:
    """Check a recipe against the existing columns and lists.

    Raises UserError, with the clause and the existing names, if it does not fit.
    """
    for name in lists:
        if LIST_COLUMN.format(name) in columns:
            place = f"recipe {recipe.name}: --uids {name}=..."
            raise UserError(f"{place}: {LIST_COLUMN.format(name)} is a column; rename the list")
    if lacking := about_scores(names_of(recipe), columns):
        raise UserError(f"recipe {recipe.name}: {lacking}")
    steps = [_step(recipe, clause, columns, lists) for clause in recipe.clauses]
    needed = {name for step in steps for e in expressions_of(step) for name in e.columns}
    for clause in recipe.clauses:
        needed |= {f"{clause.source}_{field}" for field in ("text", "score", "k")}
    if recipe.distinct is not None:
        if recipe.distinct not in columns and recipe.distinct != "uid":
            absent = _absent(recipe.distinct, columns, lists)
            raise UserError(f"recipe {recipe.name}: distinct: {absent}")
        needed.add(recipe.distinct)
    used = {name: column for name, column in columns.items() if name in needed}
    _check_letter_case(f"recipe {recipe.name}", used)
    asked = {name for name in needed if name in {LIST_COLUMN.format(one) for one in lists}}
    return RecipePlan(recipe, steps, used, frozenset(asked), seed)


def _check_letter_case(place: str, names: Collection[str]) -> None:
    """Raise UserError for two column names that differ only in case, which SQL ignores."""
    seen = {name: name for name in (*ALWAYS, "draw", "repeat_draw")}
    for name in names:
        if seen.setdefault(name.lower(), name) != name:
            raise UserError(
                f"{place}: columns {name!r} and {seen[name.lower()]!r} differ only in case, which "
                "SQL ignores; use one of them"
            )


def _step(
    recipe: Recipe, clause: Clause, columns: Mapping[str, Column], lists: Collection[str]
) -> ClausePlan:
    place = _place(recipe, clause)
    if not is_text(columns.get(f"{clause.source}_text")):
        texts = [name for name in _readable(columns) if is_text(columns.get(name))]
        known = [name.removesuffix("_text") for name in texts]
        raise UserError(f"{place}: {no_captions(clause.source, known)}")
    where = parse(clause.where, place)
    weight = parse(clause.weight, f"{place}, weight '{clause.weight}'")
    logit = _logit(recipe, clause, place)
    of_logit = frozenset[str]() if logit is None else logit.columns
    _check_names(where.columns | weight.columns | of_logit, place, columns, lists)
    return ClausePlan(clause, where, weight, _text(clause, place, columns, lists), logit)


def _text(
    clause: Clause, place: str, columns: Mapping[str, Column], lists: Collection[str]
) -> Expression | None:
    """Parse the text template of a clause, in which a source stands for its first text."""
    if clause.text is None:
        return None
    texts = {name.removesuffix("_text"): name for name, one in columns.items() if is_text(one)}
    for one in template.expressions(clause.text):  # each must be a valid expression by itself
        parsed = parse(one, f"{place}, {{{one}}}")
        if parsed.thresholds or parsed.scales:
            what = (
                "thresholds are"
                if parsed.thresholds
                else f"{next(iter(parsed.scales.values()))} is"
            )
            raise UserError(f"{place}, {{{one}}}: {what} not supported in texts")
    named = parse(template.as_sql(clause.text), place).columns
    for name in sorted(named & texts.keys() & columns.keys()):
        field = f", or {FIELD}{name} for the field" if f"{FIELD}{name}" in columns else ""
        raise UserError(
            f"{place}: {name!r} is both a source and a column; write {texts[name]} for the "
            f"source's text{field}"
        )
    found = parse(template.as_sql(clause.text), place, texts)
    _check_names(found.columns, place, columns, lists)
    return found


def condition_plan(
    expression: str, columns: Mapping[str, Column], seed: int, option: str
) -> RecipePlan:
    """Return a plan for a single condition, given by `option`, without texts.

    Raises UserError, prefixed with option and condition, if the condition is not valid in recipes
    or uses unknown columns.
    """
    place = f"{option} {expression!r}"
    where = parse(expression, place)
    if lacking := about_scores(where.columns, columns):
        raise UserError(f"{place}: {lacking}")
    _check_names(where.columns, place, columns, ())
    used = {name: columns[name] for name in sorted(where.columns & columns.keys())}
    _check_letter_case(place, used)
    clause = Clause(source=RAW, where=expression)
    recipe = Recipe.model_validate({"name": option, "about": "", "clauses": [clause]})
    step = ClausePlan(clause, where, parse(clause.weight, place))
    return RecipePlan(recipe, [step], used, frozenset(), seed, place)


def _check_names(
    names: Collection[str], place: str, columns: Mapping[str, Column], lists: Collection[str]
) -> None:
    """Raise UserError for a name that an expression cannot use."""
    have = {*columns, *ALWAYS, "draw", *(LIST_COLUMN.format(name) for name in lists)}
    for name in sorted(names):
        if name not in have:
            raise UserError(f"{place}: {_absent(name, columns, lists)}")
        if instead := other_owner(name, columns):
            raise UserError(
                f"{place}: {name!r} is both a column written by capmix and a field of the samples' "
                f"JSON; write {instead}"
            )


def _absent(name: str, columns: Mapping[str, Column], lists: Collection[str]) -> str:
    prefix = LIST_COLUMN.format("")
    if name.startswith(prefix):
        given = ", ".join(lists) or "none"
        name = name.removeprefix(prefix)
        return f"no uid list {name!r} (lists given by --uids: {given}); pass --uids {name}=FILE"
    known = _readable(columns)
    hint = about_annotation(name) or did_you_mean(name, [*known, *columns])
    return f"no column {name!r}{hint or ';'} columns: {', '.join(known)}"


def _readable(columns: Mapping[str, Column]) -> list[str]:
    """Return the columns to list in errors: without the 64 numbered captions of each source, and
    without field.NAME if NAME is enough."""
    numbered = [name for name, column in columns.items() if f"_k{column.pick}_" in name]
    twice = {f"{FIELD}{name}" for name, column in columns.items() if column.folder == FIELDS}
    shown = [name for name in columns if name not in numbered and name not in twice]
    return ["uid", "key", "shard", "draw", *shown]


def check_types(plan: RecipePlan, connection: duckdb.DuckDBPyConnection) -> None:
    """Run each expression on the empty table `batch`, so that SQL errors name the clause."""
    plan = plan.scaled(dict.fromkeys(plan.scales, (0.0, 1.0)))
    values = dict.fromkeys(plan.thresholds, 0.0)
    for step in plan.steps:
        place = plan.option or f"{plan.place}, clause '{step}'"
        kinds = ((step.where, "BOOLEAN"), (step.weight, "DOUBLE"), (step.text, "VARCHAR"))
        for expression, kind in (*kinds, (step.logit, "FLOAT")):
            if expression is None:
                continue
            rows = plan.rows(expression.columns)
            sql = f"select ({expression.filled(values)})::{kind} from {rows}"
            with limited(connection, place):
                connection.sql(bounded(sql)[0]).fetchall()


def locked_connection(functions: Collection[str] = ()) -> duckdb.DuckDBPyConnection:
    """Return a connection for the expressions of recipes.

    It has no access to files, network or extensions, one thread, a memory limit, no scratch files,
    and the time zone UTC on all hosts.
    """
    connection = duckdb.connect(config={"threads": 1, "autoload_known_extensions": False})
    add_bound(connection)
    add_functions(connection, set(functions) & set(TYPES))
    connection.execute(f"set memory_limit = '{MEMORY}'")
    connection.execute("set temp_directory = ''")
    without_progress_bar(connection)
    with suppress(duckdb.Error):  # this DuckDB has no time zones
        connection.execute("set TimeZone = 'UTC'")
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")
    return connection
