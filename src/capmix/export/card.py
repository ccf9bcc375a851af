"""The README.md of an exported data set, in the form of the Hugging Face Hub's dataset cards."""

from typing import Any

import yaml

from capmix.mix.mix import Summary

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
FORMS = {
    "webdataset": "WebDataset tars: `.jpg` and the like, `.txt` (the chosen caption), `.json`",
    "datacomp": "WebDataset tars: the pool's members, untouched, under keys `<uid>-<copy>`",
    "parquet": "parquet, images embedded; `datasets.load_dataset` reads it as it is",
    "jsonl": "image files, a `.txt` caption beside each, `metadata.jsonl` and `llava.json`",
    "csv": "`captions.csv`: uid, text, source, k, score, weight; no images",
}


def dataset_card(
    subset: str, summary: Summary, recipe: dict[str, Any], models: dict[str, str], form: str
) -> str:
    """The page: what is in the data set and how it was made; licences are left to fill in.

    `models` says what wrote the captions of each source, and what scored them.
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
    if form == "parquet":
        files = [{"split": "train", "path": "data/*.parquet"}]
        about["configs"] = [{"config_name": "default", "data_files": files}]
    clauses = "\n".join(f"| {_cell(one)} | {n:,} |" for one, n in summary.by_clause.items())
    dropped = "\n".join(f"| {_cell(why)} | {n:,} |" for why, n in summary.dropped.items())
    thresholds = "\n".join(f"- `{name}` = {value}" for name, value in summary.thresholds.items())
    scores = "\n".join(
        f"- {source}: {value}" for source, value in summary.mean_score.items() if value is not None
    )
    written = "\n".join(f"- {what}: {how}" for what, how in models.items())
    return f"""---
{yaml.safe_dump(about, sort_keys=False).strip()}
---

# {subset}

{count:,} image-text pairs of {summary.rows_in:,} candidates, {summary.share_synthetic:.1%} of the
texts synthetic. Made with capmix by the recipe `{recipe["name"]}`: {_cell(recipe["about"])}

Form: {FORMS[form]}.

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

```yaml
{yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip()}
```

## Licences

To be filled in: the licence of the images and of their raw texts, and those of the models that
wrote captions.
"""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
