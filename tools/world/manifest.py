"""The manifest of a world's folder: what drew its images and texts, and which packages were there.

A folder that another version of the drawings, texts or noise has begun is refused, because its
shards would be kept.
"""

import hashlib
from importlib.metadata import version
from pathlib import Path

from capmix.errors import UserError
from capmix.storage.store import Store
from world.drawings import drawings

NAME = "world.json"
# The files that decide the bytes of pools, pairs and tests.
SOURCES = ("classes.csv", "data.py", "drawings.py", "scenes.py", "texts.py")
DRAWING = ("numpy", "pillow")
TRAINING = ("capmix", "open-clip-torch", "timm", "tokenizers", "torch")


def claim_folder(folder: Path) -> None:
    """Write the manifest of a new world, or check that of a begun one.

    Raises UserError if other code, drawings or noise have begun the folder.
    """
    store, now = Store(str(folder)), manifest()
    begun = store.read_json(NAME)
    if begun is None:
        store.write_json(NAME, now)
        return
    changed = [
        name
        for kind in ("sources", "drawing")
        for name, one in now[kind].items()
        if begun.get(kind, {}).get(name) != one
    ]
    if changed:
        raise UserError(
            f"{folder} was begun with another {', '.join(changed)}; "
            "give another folder, or delete this one"
        )


def manifest() -> dict[str, dict[str, str]]:
    """Return the SHA-256 of the sources, and the versions of the packages, by their use."""
    here = Path(__file__).parent
    digests = {name: hashlib.sha256((here / name).read_bytes()).hexdigest() for name in SOURCES}
    pixels = b"".join(one.tobytes() for one in drawings())
    digests["drawings"] = hashlib.sha256(pixels).hexdigest()
    packages = {"drawing": DRAWING, "training": TRAINING}
    versions = {kind: {name: version(name) for name in some} for kind, some in packages.items()}
    return {"sources": digests} | versions
