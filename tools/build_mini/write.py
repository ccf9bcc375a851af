"""Write the embedded pool, the evaluation sets and the manifest."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

from classes import CLASS_NAMES, TEMPLATES
from PIL import Image
from sources import Drawing

SHARD = 500
Picture = tuple[Drawing, bytes]


def pool(folder: Path, pictures: list[Picture]) -> None:
    """Write WebDataset shards in img2dataset's format; txt is the unchanged uploader's title."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.tar*"):
        old.unlink()
    # Sorted by uid, a hash, so that each shard is a random sample of the pool.
    ordered = sorted(pictures, key=lambda picture: _uid(picture[0]))
    for start in range(0, len(ordered), SHARD):
        number = start // SHARD
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for row, (drawing, data) in enumerate(ordered[start : start + SHARD]):
                key = f"{number:05d}{row:04d}"
                _add(tar, f"{key}.webp", data)
                _add(tar, f"{key}.json", _record(key, drawing, data))
                _add(tar, f"{key}.txt", drawing.title.encode("utf-8", "replace"))
        # Half of a tar with small members is padding; webdataset and open_clip also read gzip.
        packed = gzip.compress(buffer.getvalue(), 9, mtime=0)
        (folder / f"{number:05d}.tar.gz").write_bytes(packed)


def evalsets(folder: Path, part: str, pictures: list[Picture]) -> None:
    """Write a classification set and a retrieval set in CLIP_benchmark's layout."""
    names = list(CLASS_NAMES)
    classes = folder / f"wds_tuxpaint-classes_{part}"
    known = [picture for picture in pictures if picture[0].group in CLASS_NAMES]
    members = [(data, ".cls", str(names.index(drawing.group)).encode()) for drawing, data in known]
    _evalset(classes, members)
    (classes / "classnames.txt").write_text("\n".join(CLASS_NAMES.values()) + "\n", "utf-8")
    lines = "\n".join(TEMPLATES) + "\n"
    (classes / "zeroshot_classification_templates.txt").write_text(lines, "utf-8")
    retrieval = folder / f"wds_tuxpaint-retrieval_{part}"
    _evalset(retrieval, [(data, ".txt", drawing.title.encode()) for drawing, data in pictures])
    (retrieval / "dataset_type.txt").write_text("retrieval\n", "utf-8")


def manifest(embedded: Path, stamps: Path, packages: list[Path], report: dict[str, object]) -> None:
    """Write digests of the packages read and of every file written, with the build's report."""
    names = {path: str(path.relative_to(embedded)) for path in embedded.rglob("*")}
    names |= {path: f"tuxpaint/{path.relative_to(stamps)}" for path in stamps.rglob("*")}
    value = {
        "packages": {path.name: _digest(path) for path in packages},
        "files": {
            name: _digest(path)
            for path, name in sorted(names.items(), key=lambda item: item[1])
            if path.suffix in (".gz", ".tar", ".safetensors", ".txt")
            or path.name == "tokenizer.json"
        },
        "report": report,
    }
    (embedded / "manifest.json").write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def _evalset(folder: Path, members: list[tuple[bytes, str, bytes]]) -> None:
    test = folder / "test"
    test.mkdir(parents=True, exist_ok=True)
    with tarfile.open(test / "0.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (image, suffix, target) in enumerate(members):
            _add(tar, f"s{number:07d}.webp", image)
            _add(tar, f"s{number:07d}{suffix}", target)
    (test / "nshards.txt").write_text("1\n", "utf-8")


def _record(key: str, drawing: Drawing, data: bytes) -> bytes:
    width, height = Image.open(io.BytesIO(data)).size
    record = {
        "uid": _uid(drawing),
        "caption": drawing.title,
        "url": f"openclipart-0.18/{drawing.name}",
        "key": key,
        "status": "success",
        "width": width,
        "height": height,
        "sha256": hashlib.sha256(data).hexdigest(),
        "keywords": drawing.keywords,
        "license": "public domain",
    }
    return json.dumps(record).encode()


def _uid(drawing: Drawing) -> str:
    return hashlib.sha256(f"openclipart-0.18/{drawing.name}".encode()).hexdigest()[:32]


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
