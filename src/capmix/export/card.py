"""The dataset card (README.md) of an export, in the Hugging Face Hub's format."""

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
    "webdataset": "WebDataset tars: image (for example `.jpg`), selected caption (`.txt`) and "
    "metadata (`.json`)",
    "datacomp": "WebDataset tars: the pool's members, unchanged, under keys `<uid>-<copy>`",
    "parquet": "Parquet with embedded images; load it with `datasets.load_dataset`",
    "lance": "a Lance dataset with embedded images; open it with `lance.dataset`",
    "jsonl": "image files, each with a `.txt` caption, `metadata.jsonl` and `llava.json`",
    "files": "image files under their original names, each with a text file",
    "kohya": "image files, each with a text file of one caption per line, and `metadata.json`, "
    "for kohya's sd-scripts with `enable_wildcard = true`",
    "llava": "image files under their original names, and `llava.json` for LLaVA",
    "imagefolder": "image files in `train/`, and `train/metadata.parquet`; "
    "load the folder with `datasets.load_dataset`",
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
    """Return the dataset card: contents, recipe, models, and placeholders for licences.

    `models` maps each set of captions or scores to a description of the model that produced it.
    `notes` are sentences about the format, in Markdown. Names of recipes and models are escaped, so
    they cannot add markup, table cells or code fences.
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

{count:,} image-text pairs selected from {summary.rows_in:,} candidates;
{summary.share_synthetic:.1%} of the texts are synthetic.
Created with the capmix recipe {_code(recipe["name"])}: {_plain(recipe["about"])}

Format: {FORMS[form]}.{more}

## Selection

| clause | rows |
|--|--:|
{clauses}

| dropped | samples |
|--|--:|
{dropped or "| nothing | 0 |"}

Thresholds:

{thresholds or "- none"}

Mean image-text similarity by source:

{scores or "- not scored"}

## Models

{written or "- none: only raw texts"}

## Recipe

{fence}yaml
{shown}
{fence}

## Licences

To be filled in: the licences of the images, of their raw texts, and of the captioning models.
"""


def _plain(text: str) -> str:
    """Escape text for a line or a table cell."""
    return MARKUP.sub(r"\\\g<0>", printable(" ".join(text.split())))


def _code(text: str) -> str:
    """Return a code span. Not for table cells, where a `|` would end it."""
    shown = printable(" ".join(text.split()))
    fence = _longer_than(shown, "`")
    edge = " " if "`" in (shown[:1], shown[-1:]) else ""
    return f"{fence}{edge}{shown}{edge}{fence}"


def _longer_than(text: str, fence: str) -> str:
    """Return `fence`, or one longer than every run of backticks in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    return fence if longest < len(fence) else "`" * (longest + 1)


def _yaml(recipe: dict[str, Any]) -> str:
    shown = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    if printable(shown, keep="\n") != shown:
        shown = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=False)
    return shown.strip()
