"""A realistic folder of photos: names with spaces and umlauts, and text files next to them."""

from pathlib import Path

from samples import image_bytes

from capmix.workspace import Workspace, open_workspace

PHOTOS = {"IMG_1.JPG": "first", "trip/day 1/Zürich.jpg": "second", "trip/why?.png": "third"}


def write_photos(folder: Path) -> Path:
    """A folder of images with text files next to them."""
    for number, (name, text) in enumerate(PHOTOS.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(number, name))
        path.with_suffix(".txt").write_text(text)
    return folder


def photo(number: int, name: str) -> bytes:
    return image_bytes(number, kind="PNG" if name.endswith("png") else "JPEG")


def mixed(pool: Path, place: Path) -> Workspace:
    """A workspace with the subset `raw`."""
    made = open_workspace(str(pool), str(place))
    made.mix("raw")
    return made


def add_captions(work: Workspace, folder: Path, texts: list[str]) -> None:
    """One caption per photo, and the subset `both` that also has the raw text."""
    uids = [row["uid"] for row in work.subset("raw").table().to_pylist()]
    quoted = [text.replace('"', '""') for text in texts]
    lines = [f'{uid},"{text}"' for uid, text in zip(uids, quoted, strict=True)]
    (folder / "c.csv").write_text("\n".join(["uid,text", *lines]), "utf-8")
    work.import_captions([str(folder / "c.csv")], source="c")
    recipe = folder / "both.yaml"
    recipe.write_text(
        "{name: both, about: x, keep: all, clauses: [{source: raw, weight: 2}, {source: c}]}"
    )
    work.mix(str(recipe))
