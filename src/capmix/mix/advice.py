"""Advice on how to get the scores that a recipe needs and the work directory lacks."""

from collections.abc import Collection, Mapping
from typing import get_args

from capmix.annotate.settings import DEFAULT_NAMES, Method
from capmix.mix.columns import Column, is_text, scored_sources
from capmix.storage.layout import SCORES

# The methods of `capmix annotate` by the default prefix of their columns.
METHODS = {DEFAULT_NAMES.get(one, one): one for one in get_args(Method)}


def about_annotation(name: str) -> str:
    """Return a hint on how to compute a missing column, "" if it is not of an annotation."""
    method = METHODS.get(name.partition("_")[0])
    if method is not None:
        return f"; run `capmix annotate --method {method}` first;"
    if "_score_" in name and name.endswith("_masked"):
        return "; run `capmix score --mask NAME` first, and name its scorer;"
    return ""


def about_scores(names: Collection[str], columns: Mapping[str, Column]) -> str | None:
    """Return the command that computes the missing scores that the columns `names` need, or the
    scorers to choose from if several have them. None if no scores are missing."""
    sources = [
        name.removesuffix("_text")
        for name, one in columns.items()
        if is_text(one) and (one.pick is None or f"_k{one.pick}_" not in name)
    ]
    lacking = scored_sources(set(names) - columns.keys(), sources)
    if not lacking:
        return None
    folders = {one.folder for one in columns.values() if one.folder.startswith(f"{SCORES}/")}
    of_source = {
        source: {one.split("/")[1] for one in folders if one.rpartition("/")[2] == source}
        for source in sources
        if source in lacking
    }
    unscored = [source for source, scorers in of_source.items() if not scorers]
    if not unscored:
        found = ", ".join(sorted(set().union(*of_source.values())))
        shown = ", ".join(of_source)
        return f"several scorers have scored {shown} ({found}): choose one with --scorer"
    asked = scored_sources(names, sources)
    command = ",".join(one for one in sources if one in asked)
    return f"no scores for {', '.join(unscored)}: run `capmix score --sources {command}`"
