"""The README.md of an exported data set, in the form of the Hugging Face Hub's dataset cards."""

import re
from collections.abc import Sequence
from typing import Any

import yaml

from capmix.mix.mix import Summary
from capmix.settings.printable import printable

MARKUP = re.compile(r"[\\`*_\[\]<>|~$&]")

SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
    (10**10, "1B<n<10B"),
)
DATA_FILES = {"parquet": "data/*.parquet", "imagefolder": "train/**"}
FORMS = {
    "webdataset": "WebDataset tars: `.jpg` and the like, `.txt` (the chosen caption), `.json`",
    "datacomp": "WebDataset tars: the pool's members, untouched, under keys `<uid>-<copy>`",
    "parquet": "parquet, images embedded; `datasets.load_dataset` reads it as it is",
    "lance": "a Lance dataset, images embedded; `lance.dataset` reads it as it is",
    "jsonl": "image files, a `.txt` caption beside each, `metadata.jsonl` and `llava.json`",
    "files": "image files under their own names, a text file beside each",
    "kohya": "image files, a text file with a caption per line beside each, and `metadata.json`, "
    "for kohya's sd-scripts with `enable_wildcard = true`",
    "llava": "image files under their own names, and `llava.json`, the list that LLaVA reads",
    "imagefolder": "image files below `train/`, and `train/metadata.parquet`; "
    "`datasets.load_dataset` reads the folder as it is",
    "csv": "`captions.csv`: uid, text, source, k, score, weight; no images",
}


def dataset_card(
    subset: str,
    summary: Summary,
    recipe: dict[str, Any],
    models: dict[str, str],
    form: str,
    notes: Sequence[str] = (),
) -> str:
    """The page: what is in the data set and how it was made; licences are left to fill in.

    `models` says what wrote the captions of each source, and what scored them; `notes` are
    sentences about the form, in Markdown. Whatever the recipe and the models are called, it is text
    of the page: no markup, no cell or fence of its own.
    """
    count = summary.kept
    size = next((name for bound, name in SIZES if count < bound), "n>10B")
    about: dict[str, Any] = {
        "license": "other",
        "task_categories": ["image-to-text", "text-to-image", "zero-shot-image-classification"],
        "size_categories": [size],
        "tags": [
            "capmix",
            "image-text",
            *(["webdataset"] if form in ("webdataset", "datacomp") else []),
        ],
        "pretty_name": subset,
    }
    if form in DATA_FILES:
        files = [{"split": "train", "path": DATA_FILES[form]}]
        about["configs"] = [{"config_name": "default", "data_files": files}]
    clauses = "\n".join(f"| {_plain(one)} | {n:,} |" for one, n in summary.by_clause.items())
    dropped = "\n".join(f"| {_plain(why)} | {n:,} |" for why, n in summary.dropped.items())
    thresholds = "\n".join(
        f"- {_code(name)} = {value}" for name, value in summary.thresholds.items()
    )
    scores = "\n".join(
        f"- {_plain(source)}: {value}"
        for source, value in summary.mean_score.items()
        if value is not None
    )
    written = "\n".join(f"- {_plain(what)}: {_plain(how)}" for what, how in models.items())
    shown = _yaml(recipe)
    fence = _longer_than(shown, "```")
    more = "".join(f"\n\n{note}" for note in notes)
    return f"""---
{yaml.safe_dump(about, sort_keys=False).strip()}
---

# {_plain(subset)}

{count:,} image-text pairs of {summary.rows_in:,} candidates, {summary.share_synthetic:.1%} of the
texts synthetic. Made with capmix by the recipe {_code(recipe["name"])}: {_plain(recipe["about"])}

Form: {FORMS[form]}.{more}

## What was chosen

| clause | rows |
|--|--:|
{clauses}

| left out | samples |
|--|--:|
{dropped or "| nothing | 0 |"}

Thresholds:

{thresholds or "- none"}

Mean image-text similarity by source:

{scores or "- not scored"}

## Models

{written or "- none: raw texts alone"}

## The recipe

{fence}yaml
{shown}
{fence}

## Licences

To be filled in: the licence of the images and of their raw texts, and those of the models that
wrote captions.
"""


def _plain(text: str) -> str:
    """In a line or in a cell of a table: nothing in it is markup."""
    return MARKUP.sub(r"\\\g<0>", printable(" ".join(text.split())))


def _code(text: str) -> str:
    """A code span, outside of tables, where a `|` would end it."""
    shown = printable(" ".join(text.split()))
    fence = _longer_than(shown, "`")
    edge = " " if "`" in (shown[:1], shown[-1:]) else ""
    return f"{fence}{edge}{shown}{edge}{fence}"


def _longer_than(text: str, fence: str) -> str:
    """`fence`, or one that no run of backticks in the text closes."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    return fence if longest < len(fence) else "`" * (longest + 1)


def _yaml(recipe: dict[str, Any]) -> str:
    shown = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    if printable(shown, keep="\n") != shown:
        shown = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=False)
    return shown.strip()
