"""Checks of the models and of the noise, which must hold before any mix is compared."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import mannwhitneyu

import capmix
from capmix.pool import Sample, open_pool
from world.drawings import object_classes
from world.grid import FRACTION
from world.texts import plural

LEAST_NAMED = 0.40  # of held-out images of head classes, a true object named
LEAST_TIMES_CHANCE = 20.0  # zero-shot accuracy of a CLIP trained on true texts
KINDS = {one.name: one.kind for one in object_classes()}
NAMES = set(KINDS)
# Names that contain another one.
LONGER = {one for one in NAMES if any(f" {other} " in f" {one} " for other in NAMES - {one})}


def named_share(
    captions: Sequence[str], objects: Sequence[Sequence[str]], by_kind: bool = True
) -> float:
    """Return the share of captions that name one of the objects, by its name or its kind."""
    both = zip(captions, objects, strict=True)
    return float(np.mean([_names_one(text, some, by_kind) for text, some in both]))


def shuffled_share(captions: Sequence[str], objects: Sequence[Sequence[str]]) -> float:
    """Return named_share of captions that are permuted among the images: the chance level."""
    order = np.random.default_rng(0).permutation(len(captions))
    return named_share([captions[i] for i in order], objects)


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the probability that a positive score is above a negative one; ties count half."""
    found = mannwhitneyu(positive, negative).statistic
    return float(found / (len(positive) * len(negative)))


def purity(scores: np.ndarray, noise: np.ndarray, top: float = FRACTION) -> dict[str, float]:
    """Return the share of each kind of raw text among the `top` fraction of the scores."""
    best = np.argsort(-scores, kind="stable")[: round(top * len(scores))]
    return {str(kind): float((noise[best] == kind).mean()) for kind in np.unique(noise)}


def truth(pool: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the uid and the metadata of each sample of a pool."""
    opened = open_pool(str(pool))
    for shard in opened.shards:
        for sample in opened.read(shard):
            if isinstance(sample, Sample):
                yield sample.uid, dict(sample.metadata)


def check_captioner(pool: Path, work: Path, model: str, source: str) -> dict[str, float]:
    """Caption the gate's images greedily; return the shares `named` and `shuffled`."""
    opened = capmix.open(pool, work=work)
    opened.caption(source=source, model=model, temperature=0.0, max_tokens=20)
    objects = {uid: about["objects"] for uid, about in truth(pool)}
    table = opened.table(sources=[source]).to_pylist()
    texts = [row[f"{source}_text"] for row in table]
    true = [objects[row["uid"]] for row in table]
    return {"named": named_share(texts, true), "shuffled": shuffled_share(texts, true)}


def check_scorer(pool: Path, work: Path, model: str) -> dict[str, Any]:
    """Score raw texts; return AUCs against wrong texts, and the purity of the top.

    The AUC `style` is that of specific texts against the same texts, permuted among their images: a
    scorer that prefers a style of text, whatever it says, has 0.5.
    """
    opened = capmix.open(pool, work=work)
    known = dict(truth(pool))
    specific = [uid for uid, about in known.items() if about["noise"] == "specific"]
    order = np.random.default_rng(0).permutation(len(specific))
    permuted = [known[specific[i]]["caption"] for i in order]
    texts = work / "permuted.parquet"
    pq.write_table(pa.table({"uid": specific, "text": permuted}), texts)
    opened.import_captions(texts, source="permuted", force=True)
    opened.score(model=model, sources=["raw", "permuted"], force=True)
    table = opened.table(sources=["raw", "permuted"]).to_pylist()
    scores = np.array([row["raw_score"] for row in table])
    kinds = np.array([known[row["uid"]]["noise"] for row in table])
    by_kind = {str(kind): scores[kinds == kind] for kind in np.unique(kinds)}
    wrong = np.array([row["permuted_score"] for row in table if row["permuted_score"] is not None])
    aucs = {kind: auc(by_kind[kind], by_kind["unrelated"]) for kind in ("specific", "partial")}
    return {
        "auc": aucs | {"style": auc(by_kind["specific"], wrong)},
        "mean": {kind: float(some.mean()) for kind, some in by_kind.items()},
        "top": purity(scores, kinds),
    }


def check_clip(model: Path, evalsets: Path) -> float:
    """Return the zero-shot accuracy of a run in multiples of chance."""
    found = capmix.evaluate(model, evalsets=str(evalsets), tasks="world-classes")
    accuracy: float = found.lines[0]["metrics"]["acc1"]
    return accuracy * len(object_classes())


def closed(gates: dict[str, Any]) -> list[str]:
    """Return a line for each bound that the models miss."""
    named, times = gates["captioner"]["named"], gates["times_chance"]
    lines = []
    if named < LEAST_NAMED:
        lines.append(f"captioner names an object in {named:.0%} of images, below {LEAST_NAMED:.0%}")
    if times < LEAST_TIMES_CHANCE:
        lines.append(f"CLIP is at {times:.1f} times chance, below {LEAST_TIMES_CHANCE:g}")
    return lines


def _names_one(text: str, objects: Iterable[str], by_kind: bool) -> bool:
    for name in LONGER - set(objects):  # a "clown loach" does not name a clown
        text = text.replace(name, "")
    names = [one for name in objects for one in ((name, KINDS[name]) if by_kind else (name,))]
    wanted = {word for one in names for word in (one, plural(one))}
    return any(re.search(rf"\b{re.escape(word)}\b", text) for word in wanted)
