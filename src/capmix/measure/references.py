"""Reference metrics of captions: CIDEr, BLEU-4, ROUGE-L, METEOR, CLIPScore and RefCLIPScore.

The first four are computed by pycocoevalcap. Its tokenizer (Stanford's PTBTokenizer) and METEOR
need Java. Without Java, texts are tokenized as in words.py, METEOR is left out, and the values are
not comparable with published ones. The result includes the name of the tokenization.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from capmix.errors import UserError
from capmix.measure.encode import encode_all
from capmix.measure.population import Population, scores_of_texts
from capmix.measure.words import WORD
from capmix.mix.columns import folders_of, read_samples
from capmix.mix.parts import check_parts, refuse_rewritten
from capmix.score.scorer import Scorer
from capmix.storage.draft import Draft
from capmix.storage.json_text import parse_json
from capmix.storage.layout import MEASURES
from capmix.storage.marker import Counts, Marker
from capmix.storage.once import once

PART = f"{MEASURES}/references"
CLIP_WEIGHT = 2.5  # w of Hessel et al. 2021, arXiv 2104.08718, section 3
SOURCE = "source:"


@dataclass(frozen=True)
class ReferencedImage:
    """An image with its references, and the text and score of each source."""

    references: list[str]
    texts: dict[str, str | None]
    scores: dict[str, float | None]


def measure_references(
    population: Population, given: str, java: bool = True, scorer: Scorer | None = None
) -> dict[str, Any]:
    """Compute the metrics of each source on the samples that have references.

    `given` is a COCO or NoCaps annotation file (see load_references) or source:NAME. RefCLIPScore
    needs `scorer`, the scorer whose scores are measured. Raises UserError if no sample has a
    reference.
    """
    columns = population.columns()
    parts = check_parts(population.store, population.pool.shards, folders_of(columns.values()))
    name = given.removeprefix(SOURCE) if given.startswith(SOURCE) else None
    if name is not None and name not in population.sources:
        known = ", ".join(population.sources)
        raise UserError(f"--references {given}: no such source; sources: {known}")
    inputs = dict(parts.digests)
    if name is None:
        about = Path(given).stat() if Path(given).exists() else None
        inputs["references"] = f"{about.st_size} {about.st_mtime_ns}" if about else ""
    sources = [source for source in population.sources if source != name]
    config: dict[str, Any] = {"references": given, "sources": sources, "scorer": population.scorer}
    config |= {"java": java and has_java(), "text_encoder": scorer.name if scorer else None}

    def make(_: Draft) -> Marker:
        by_key = load_references(given) if name is None else None
        items: list[ReferencedImage] = []
        rows = 0
        for shard in population.pool.shards:
            table = read_samples(population.store, shard.name, columns, parts)
            table = scores_of_texts(table, population.scored)
            rows += len(table)
            items += _items(table, population, by_key, name)
        refuse_rewritten(population.store, parts)
        if not items:
            raise UserError(
                f"--references {given}: no sample of the pool has a reference. The image names "
                "(without suffix) or ids in the file must be uids or keys of samples."
            )
        metrics = {source: _metrics(items, source, java, scorer) for source in sources}
        counts = Counts(ok=len(items))
        counts.dropped.update({"no reference": rows - len(items)})
        extra = {
            "images": len(items),
            "tokens": "PTBTokenizer" if config["java"] else "words in lower case",
            "sources": metrics,
        }
        return Marker(inputs, config, rows, counts, extra)

    marker, _ = once(population.store, PART, inputs, config, make)
    return marker.extra


def has_java() -> bool:
    return shutil.which("java") is not None


def load_references(path: str) -> dict[str, list[str]]:
    """Read an annotation file; return references by image id and by file name without suffix.

    The format is that of COCO and NoCaps: `annotations` with `image_id` and `caption`, `images`
    with `id` and `file_name`. Raises UserError for other formats.
    """
    try:
        value = parse_json(Path(path).read_bytes())
        names = {
            image["id"]: PurePosixPath(str(image["file_name"])).stem
            for image in value.get("images", ())
        }
        found: dict[str, list[str]] = {}
        for one in value["annotations"]:
            found.setdefault(str(one["image_id"]), []).append(str(one["caption"]))
        for number, name in names.items():
            if str(number) in found:
                found.setdefault(name, found[str(number)])
    except (OSError, ValueError) as error:
        raise UserError(f"--references {path}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--references {path}: expected COCO's format, annotations with image_id and caption"
        ) from error
    return found


def _items(
    table: pa.Table, population: Population, by_key: Mapping[str, list[str]] | None, own: str | None
) -> list[ReferencedImage]:
    found = []
    for row in table.to_pylist():
        if by_key is None:
            references = [row[f"{own}_text"]] if row[f"{own}_text"] else []
        else:
            stem = PurePosixPath(row["key"]).stem
            names = (row["uid"], row["key"], stem)
            references = next((by_key[name] for name in names if name in by_key), [])
        if references:
            texts = {source: row[f"{source}_text"] for source in population.sources}
            scores = {source: row[f"{source}_score"] for source in population.scored}
            found.append(ReferencedImage(references, texts, scores))
    return found


def _metrics(
    items: Sequence[ReferencedImage], source: str, java: bool, scorer: Scorer | None
) -> dict[str, Any]:
    """Compute the metrics of a source. A missing caption counts as an empty one; CLIPScores cover
    only captions with a score."""
    candidates = [item.texts.get(source) or "" for item in items]
    metrics: dict[str, Any] = {"captions": sum(map(bool, candidates))}
    metrics |= text_metrics(candidates, [item.references for item in items], java)
    scored = [item for item in items if item.scores.get(source) is not None]
    metrics["CLIPScore"] = metrics["RefCLIPScore"] = None
    if scored:
        similarity = np.array([item.scores[source] for item in scored], np.float64)
        is_cosine = bool((np.abs(similarity) <= 1.001).all())  # imports may be scaled by 100
        metrics["CLIPScore"] = float(clip_score(similarity).mean()) if is_cosine else None
        if scorer is not None and is_cosine:
            texts = [item.texts[source] or "" for item in scored]
            closest = _closest(scorer, texts, [item.references for item in scored])
            metrics["RefCLIPScore"] = float(ref_clip_score(similarity, closest).mean())
    return metrics


def text_metrics(
    candidates: Sequence[str], references: Sequence[Sequence[str]], java: bool = True
) -> dict[str, float | None]:
    """Return CIDEr, BLEU-4, ROUGE-L and METEOR (None without Java) for one candidate per image.

    Raises UserError if pycocoevalcap is not installed.
    """
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.meteor.meteor import Meteor
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise UserError("reference metrics: pip install 'capmix[measure]'") from error
    use_java = java and has_java()
    texts = [[text] for text in candidates]
    result, truth = _tokens(texts, use_java), _tokens(references, use_java)
    found: dict[str, float | None] = {
        "CIDEr": float(Cider().compute_score(truth, result)[0]),
        "BLEU-4": float(Bleu(4).compute_score(truth, result, verbose=0)[0][3]),
        "ROUGE-L": float(Rouge().compute_score(truth, result)[0]),
        "METEOR": None,
    }
    if use_java:
        found["METEOR"] = float(Meteor().compute_score(truth, result)[0])
    return found


def _tokens(texts: Sequence[Sequence[str]], java: bool) -> dict[int, list[str]]:
    lines = {i: [" ".join(text.split()) for text in of_image] for i, of_image in enumerate(texts)}
    if not java:
        return {i: [" ".join(WORD.findall(t.lower())) for t in one] for i, one in lines.items()}
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    asked = {i: [{"caption": text} for text in one] for i, one in lines.items()}
    found: dict[int, list[str]] = PTBTokenizer().tokenize(asked)
    return found


def clip_score(similarity: np.ndarray) -> np.ndarray:
    """Return CLIP-S = 2.5 * max(cos, 0) of cosine similarities (arXiv 2104.08718, section 3)."""
    score: np.ndarray = CLIP_WEIGHT * np.maximum(similarity, 0)
    return score


def ref_clip_score(similarity: np.ndarray, closest: np.ndarray) -> np.ndarray:
    """Return RefCLIP-S: the harmonic mean of CLIP-S and max(cos, 0) to the closest reference."""
    of_image, of_text = clip_score(similarity), np.maximum(closest, 0)
    both = of_image + of_text
    mean: np.ndarray = np.divide(
        2 * of_image * of_text, both, out=np.zeros_like(both), where=both > 0
    )
    return mean


def _closest(
    scorer: Scorer, texts: Sequence[str], references: Sequence[Sequence[str]]
) -> np.ndarray:
    """Return the cosine similarity of each text to its closest reference."""
    flat = [reference for of_image in references for reference in of_image]
    vectors = encode_all(scorer, [*texts, *flat])
    of_texts, of_references = vectors[: len(texts)], vectors[len(texts) :]
    counts = [len(of_image) for of_image in references]
    owner = np.repeat(np.arange(len(texts)), counts)
    similarity = (of_references * of_texts[owner]).sum(axis=1)
    starts = np.cumsum([0, *counts[:-1]])
    highest: np.ndarray = np.maximum.reduceat(similarity, starts)
    return highest.astype(np.float64)
