"""A tiny setup in which every command takes milliseconds, for tests with thousands of runs.

It has a pool of 2 x 4 samples, captions from a field of their JSON, a scorer that hashes its
inputs, and one recipe.
"""

import hashlib
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from null_models import NullScorer
from samples import image_bytes, tar_bytes

from capmix.score.settings import ScoreSettings
from capmix.workspace import Workspace, open_workspace

SHARDS, SAMPLES = 2, 4
FIELDS = ("first", "second")
RECIPE = """
name: s
about: the better half of the raw texts, captions elsewhere
clauses:
  - {source: raw, where: "top(raw_score, 0.5)"}
  - {source: tags, where: "tags_score > 0.2", weight: 2}
"""
MODEL = "small_world:HashScorer"


class HashScorer(NullScorer):
    """A scorer whose similarities depend only on the bytes of image and text."""

    def __init__(self, settings: ScoreSettings):
        super().__init__()
        self.device = "cpu"


def write_world(folder: Path) -> Path:
    """Write the pool and the recipe."""
    (folder / "pool").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    for shard in range(SHARDS):
        members = []
        for row in range(SAMPLES):
            number = shard * SAMPLES + row
            about: dict[str, Any] = {"uid": f"{number:032x}", "caption": f"picture {number}"}
            about |= {field: f"{field} text of {number}" for field in FIELDS}
            key = f"{number:09d}"
            members += [(f"{key}.jpg", image_bytes(number)), (f"{key}.txt", b"picture %d" % number)]
            members += [(f"{key}.json", json.dumps(about).encode())]
        (folder / f"pool/{shard:05d}.tar").write_bytes(tar_bytes(members))
    return folder


def caption(work: Workspace, field: str, force: bool = False) -> None:
    work.caption("tags", model=f"field:{field}", force=force)


def score(work: Workspace) -> None:
    work.score(model=MODEL, save_embeddings=True)


def mix(work: Workspace, folder: Path, seed: int = 0) -> None:
    work.mix(str(folder / "recipe.yaml"), seed=seed, npy=True)


def mix_captions(work: Workspace) -> None:
    """Mix another subset of the same name, without a file of uids."""
    work.mix("synthetic", synthetic="tags", out="s")


def export(work: Workspace, out: str) -> None:
    work.export("s", out, samples_per_shard=50)  # one shard, exported by this process


def commands(folder: Path, out: str) -> Mapping[str, Callable[[Workspace], None]]:
    """Return the commands by name."""
    return {
        "caption first": lambda work: caption(work, "first"),
        "caption second": lambda work: caption(work, "second"),
        "caption first --force": lambda work: caption(work, "first", True),
        "caption second --force": lambda work: caption(work, "second", True),
        "score": score,
        "mix": lambda work: mix(work, folder),
        "mix --seed 1": lambda work: mix(work, folder, 1),
        "mix without uids": mix_captions,
        "export": lambda work: export(work, out),
    }


SETTLED = ("caption first --force", "score", "mix", "export")


def opened(folder: Path, work: str) -> Workspace:
    return open_workspace(str(folder / "pool"), work)


def similarity(image: bytes, text: str) -> float:
    """Compute the score of an image and a text independently."""
    from io import BytesIO

    from PIL import Image

    scorer = NullScorer()
    with Image.open(BytesIO(image)) as picture:
        vector = scorer.encode_pixels([scorer.prepare(picture.convert("RGB"))])[0]
    vector = vector.astype(np.float16).astype(np.float32)
    words = scorer.encode_tokens([text])[0]
    return float(np.einsum("d,d->", vector, words, dtype=np.float32))


def samples(folder: Path) -> dict[str, tuple[str, bytes, dict[str, Any]]]:
    """Return shard, image and JSON of each sample of the original pool, by uid."""
    found = {}
    for shard in range(SHARDS):
        with tarfile.open(folder / f"pool/{shard:05d}.tar") as archive:
            data = {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
        for name in [name for name in data if name.endswith(".jpg")]:
            about = json.loads(data[name.replace(".jpg", ".json")])
            found[about["uid"]] = f"{shard:05d}", data[name], about
    return found


def wrong_rows(
    work: Workspace, known: Mapping[str, tuple[str, bytes, dict[str, Any]]]
) -> list[str]:
    """Return the errors in the subset's rows."""
    found = []
    for row in work.subset("s").table().to_pylist():
        shard, image, about = known[row["uid"]]
        texts = [about["caption"]] if row["source"] == "raw" else [about[one] for one in FIELDS]
        if row["shard"] != shard or row["text"] not in texts:
            found.append(f"{row['uid']}: {row['shard']} {row['text']!r}")
        elif row["score"] is not None and abs(row["score"] - similarity(image, row["text"])) > 1e-6:
            found.append(f"{row['uid']}: score {row['score']} of {row['text']!r}")
    return found


def wrong_pairs(
    tars: Mapping[str, bytes], known: Mapping[str, tuple[str, bytes, dict[str, Any]]]
) -> list[str]:
    """Return exported samples whose image or text differs from the pool's or the captioner's."""
    from io import BytesIO

    found = []
    for name, data in tars.items():
        with tarfile.open(fileobj=BytesIO(data)) as archive:
            members = {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
        for member in [one for one in members if one.endswith(".jpg")]:
            uid = member.partition("-")[0]
            _, image, about = known[uid]
            text = members[member.replace(".jpg", ".txt")].decode()
            if hashlib.sha256(members[member]).digest() != hashlib.sha256(image).digest():
                found.append(f"{name}: {member}: another image")
            if text not in (about["caption"], *(about[one] for one in FIELDS)):
                found.append(f"{name}: {member}: text {text!r}")
    return found
