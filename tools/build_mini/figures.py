"""Evaluate the embedded models on a set of stamps, for their model cards."""

import numpy as np
from classes import CLASS_NAMES, TEMPLATES
from sources import Drawing
from words import content_words

from capmix.caption.backends.mini import MiniCaptioner
from capmix.caption.settings import CaptionSettings
from capmix.evaluation.metrics import classify, retrieve
from capmix.mini.image_tower import LiteTower
from capmix.models.image_pass import unit
from capmix.models.tokens import encode_texts
from capmix.score.backends.mini import MiniScorer

SAMPLING_SEEDS = 5


def measure(stamps: list[Drawing], features: np.ndarray) -> dict[str, float]:
    """Return the scorer's retrieval and zero-shot results and the captioner's hits, in percent."""
    encoder = LiteTower()
    scorer = MiniScorer(encoder=encoder)
    titles = [stamp.title for stamp in stamps]
    images = scorer.project_images(features)
    found = retrieve(images, encode_texts(scorer, titles), np.arange(len(titles))).metrics()
    names = list(CLASS_NAMES)
    rows = [i for i, stamp in enumerate(stamps) if stamp.group in CLASS_NAMES]
    labels = np.array([names.index(stamps[i].group) for i in rows])
    prompts = [template.replace("{c}", CLASS_NAMES[n]) for n in names for template in TEMPLATES]
    embedded = encode_texts(scorer, prompts).reshape(len(names), len(TEMPLATES), -1)
    zero_shot = classify(images[rows], unit(embedded.mean(axis=1)), labels).metrics()
    hits = [
        _hits(encoder, features, titles, CaptionSettings(seed=seed))
        for seed in range(SAMPLING_SEEDS)
    ]
    greedy = _hits(encoder, features, titles, CaptionSettings(temperature=0))
    figures = found | {
        "zero_shot_acc1": zero_shot["acc1"],
        "caption_hit_top50_t0.75": float(np.mean(hits)),
        "caption_hit_greedy": greedy,
    }
    percent = {name: round(100 * value, 1) for name, value in figures.items()}
    return percent | {
        "candidates": len(titles),
        "zero_shot_images": len(rows),
        "zero_shot_classes": len(names),
    }


def _hits(
    encoder: LiteTower, features: np.ndarray, titles: list[str], settings: CaptionSettings
) -> float:
    """Return the share of captions with a content word of the stamp's description."""
    uids = [str(i) for i in range(len(titles))]
    captions = MiniCaptioner(settings, encoder=encoder).caption(features, uids, "mini")
    pairs = zip(captions, titles, strict=True)
    return float(np.mean([bool(content_words(c[0].text) & content_words(t)) for c, t in pairs]))
