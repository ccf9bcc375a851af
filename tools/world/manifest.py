"""The manifest of a world's folder: what drew its images and texts, and which packages were there.

A folder that another version of the drawings, texts or noise has begun is refused, because its
shards would be kept. Other packages for training are only logged: finished runs are kept, and
further ones may differ from them.
"""

import hashlib
import logging
from importlib.metadata import version
from pathlib import Path

from capmix import UserError
from capmix.storage.store import Store
from world.drawings import drawings

NAME = "world.json"
# The files that decide the bytes of pools, pairs and tests.
SOURCES = ("classes.csv", "data.py", "drawings.py", "scenes.py", "texts.py")
DRAWING = ("numpy", "pillow")
TRAINING = ("capmix", "open-clip-torch", "timm", "tokenizers", "torch")
Manifest = dict[str, dict[str, str]]
log = logging.getLogger(__name__)


def claim_folder(folder: Path) -> None:
    """Write the manifest of a new world, or check that of a begun one.

    Raises UserError if other code, drawings or noise have created the folder.
    """
    store, now = Store(str(folder)), manifest()
    begun = store.read_json(NAME)
    if begun is None:
        store.write_json(NAME, now)
        return
    if changed := _changed(begun, now, "sources", "drawing"):
        raise UserError(
            f"{folder} was created with another version of {', '.join(changed)}; "
            "give another folder, or delete this one"
        )
    if changed := _changed(begun, now, "training"):
        log.warning(
            "%s was created with another version of %s: its runs are kept, and others can differ",
            folder, ", ".join(changed),
        )  # fmt: skip


def _changed(begun: Manifest, now: Manifest, *kinds: str) -> list[str]:
    return [
        name
        for kind in kinds
        for name, one in now[kind].items()
        if begun.get(kind, {}).get(name) != one
    ]


def manifest() -> Manifest:
    """Return the SHA-256 of the sources, and the versions of the packages, by their use."""
    here = Path(__file__).parent
    digests = {name: hashlib.sha256((here / name).read_bytes()).hexdigest() for name in SOURCES}
    pixels = b"".join(one.tobytes() for one in drawings())
    digests["drawings"] = hashlib.sha256(pixels).hexdigest()
    packages = {"drawing": DRAWING, "training": TRAINING}
    versions = {kind: {name: version(name) for name in some} for kind, some in packages.items()}
    return {"sources": digests} | versions
