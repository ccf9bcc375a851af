"""Fetch and read the public packages behind the embedded data and models."""

import gzip
import io
import json
import re
import subprocess
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

DEBIAN_PACKAGES = (
    "openclipart-png",
    "openclipart-svg",
    "tuxpaint-stamps-default",
    "wordnet-base",
)
# Emoji drawings for training only. OpenMoji is left out: its licence is CC BY-SA.
EMOJI_SETS = {
    "noto": "@iconify-json/noto@1.2.9",  # Apache-2.0
    "noto-v1": "@iconify-json/noto-v1@1.2.5",  # Apache-2.0
    "fxemoji": "@iconify-json/fxemoji@1.2.2",  # Apache-2.0
    "fluent": "@iconify-json/fluent-emoji@1.2.7",  # MIT
    "twemoji": "@iconify-json/twemoji@1.2.5",  # CC BY 4.0
}
EMOJI_WORDS = "emojibase-data@17.0.0"  # MIT; keywords from Unicode CLDR (Unicode licence)

STAR_SERIES = re.compile(r"star_\d+pt\d+step", re.IGNORECASE)
NAMESPACES = {
    "cc": "http://web.resource.org/cc/",
    "dc": "http://purl.org/dc/elements/1.1/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
}


@dataclass
class Drawing:
    """One picture of a source package: its file or SVG text, with its title and keywords."""

    name: str
    source: str
    path: Path | None = None
    svg: str | None = None
    title: str = ""
    keywords: list[str] = field(default_factory=list)
    group: str = ""


def fetch(cache: Path) -> Path:
    """Download and unpack all packages to `cache`; existing ones are not fetched again."""
    root = cache / "root"
    for package in DEBIAN_PACKAGES:
        if not list(cache.glob(f"{package}_*.deb")):
            subprocess.run(["apt-get", "download", package], cwd=cache, check=True)
            deb = next(cache.glob(f"{package}_*.deb"))
            subprocess.run(["dpkg", "-x", deb.name, "root"], cwd=cache, check=True)
    for package in (*EMOJI_SETS.values(), EMOJI_WORDS):
        if not _npm_tarball(cache, package).exists():
            subprocess.run(["npm", "pack", "--silent", package], cwd=cache, check=True)
    return root / "usr/share"


def downloads(cache: Path) -> list[Path]:
    """Return the downloaded package files, for the manifest."""
    return sorted([*cache.glob("*.deb"), *cache.glob("*.tgz")])


def openclipart(share: Path) -> Iterator[Drawing]:
    """Return public-domain drawings with their uploader's title, in path order.

    Links to other drawings, records without a public-domain statement (two are GPL) and the 1,375
    generated stars are left out.
    """
    svg_root = share / "openclipart/svg"
    for svg in sorted(svg_root.rglob("*.svg")):
        png = share / "openclipart/png" / svg.relative_to(svg_root).with_suffix(".png")
        if svg.is_symlink() or png.is_symlink() or not png.exists() or STAR_SERIES.search(svg.stem):
            continue
        record = _openclipart_record(svg)
        if record is None:
            continue
        title, keywords = record
        name = str(svg.relative_to(svg_root).with_suffix(""))
        yield Drawing(name, "openclipart", png, None, title, keywords, name.split("/")[0])


def _openclipart_record(svg: Path) -> tuple[str, list[str]] | None:
    text = svg.read_text("utf-8", "replace")
    block = re.search(r"<metadata.*?</metadata>", text, re.DOTALL)
    if block is None:
        return None
    work = re.search(r"<(cc:)?Work.*?</(cc:)?Work>", block.group(), re.DOTALL)
    licences = re.findall(r"<(?:cc:)?license\s+rdf:resource=\"([^\"]*)\"", block.group())
    if work is None or not licences or not all("PublicDomain" in one for one in licences):
        return None
    if re.search(r"\bGPL\b|GNU General", block.group()):
        return None
    declared = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in NAMESPACES.items())
    body = re.sub(r"\sxmlns(:\w+)?=\"[^\"]*\"", "", work.group())
    try:
        element = ElementTree.fromstring(f"<root {declared}>{body}</root>")[0]
    except ElementTree.ParseError:
        return None
    title = element.findtext("dc:title", "", NAMESPACES)
    items = element.iterfind("dc:subject/rdf:Bag/rdf:li", NAMESPACES)
    return title, [item.text.strip() for item in items if item.text and item.text.strip()]


def stamps(share: Path) -> Iterator[Drawing]:
    """Return Tux Paint stamps with their English descriptions, without the `symbols` folder."""
    root = share / "tuxpaint/stamps"
    images = {path.with_suffix(""): path for path in sorted(root.rglob("*.svg"))}
    images |= {path.with_suffix(""): path for path in sorted(root.rglob("*.png"))}
    for stem, path in sorted(images.items()):
        words = stem.with_name(stem.name + ".txt")
        parts = stem.relative_to(root).parts
        if parts[0] == "symbols" or not words.exists():
            continue
        title = words.read_text("utf-8", "replace").splitlines()[0].strip()
        folders = [part for part in parts[:-1] if part != "cartoon"]
        svg = path.read_text("utf-8", "replace") if path.suffix == ".svg" else None
        name = "/".join(parts)
        yield Drawing(name, "tuxpaint", path, svg, title, [], "/".join(folders[:2]))


def emoji(cache: Path) -> Iterator[Drawing]:
    """Return emoji with their Unicode names and CLDR keywords, without flags and letters."""
    words = _emoji_words(cache)
    for source, package in EMOJI_SETS.items():
        icons = json.loads(_member(_npm_tarball(cache, package), "package/icons.json"))
        size = icons.get("width", 16), icons.get("height", 16)
        for icon, shape in sorted(icons["icons"].items()):
            known = words.get(icon.replace("-", " "))
            if known is None:
                continue
            width, height = shape.get("width", size[0]), shape.get("height", size[1])
            svg = (
                '<svg xmlns="http://www.w3.org/2000/svg" '
                'xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="0 0 {width} {height}">{shape["body"]}</svg>'
            )
            yield Drawing(f"{source}/{icon}", source, None, svg, known[0], known[1], "emoji")


def _emoji_words(cache: Path) -> dict[str, tuple[str, list[str]]]:
    rows = json.loads(_member(_npm_tarball(cache, EMOJI_WORDS), "package/en/data.json"))
    flags_and_symbols = {8, 9}
    known: dict[str, tuple[str, list[str]]] = {}
    for row in rows:
        if row.get("group") in flags_and_symbols or row.get("group") is None:
            continue
        label = row["label"].lower()
        key = re.sub(r"[^a-z0-9 ]+", " ", label.replace("’", "").replace("-", " "))
        known[" ".join(key.split())] = (label, row.get("tags", []))
    return known


def wordnet_nouns(share: Path) -> Iterator[tuple[list[str], str, str, int]]:
    """Yield noun synsets: lemmas, gloss, offset of the first hypernym ("" at the root), offset."""
    for line in (share / "wordnet/data.noun").read_text("latin-1").splitlines():
        if line.startswith("  "):
            continue
        fields, _, gloss = line.partition("|")
        parts = fields.split()
        count = int(parts[3], 16)
        lemmas = [parts[4 + 2 * i].replace("_", " ") for i in range(count)]
        pointers = parts[4 + 2 * count :]
        hypernym = pointers[pointers.index("@") + 1] if "@" in pointers else ""
        yield lemmas, gloss.strip(), hypernym, int(parts[0])


def _npm_tarball(cache: Path, package: str) -> Path:
    name, _, version = package.rpartition("@")
    return cache / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"


def _member(tarball: Path, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(tarball.read_bytes()))) as archive:
        member = archive.extractfile(name)
        assert member is not None, f"{tarball}: no {name}"
        return member.read()
