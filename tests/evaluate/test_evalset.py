from pathlib import Path

import pytest

from capmix.errors import UserError
from capmix.evaluate.evalset import embedded_evalsets, load_evalset
from capmix.mini.image_tower import LiteTower
from capmix.store import Store


def test_embedded_sets_have_clip_benchmarks_layout(tmp_path: Path, tower: LiteTower) -> None:
    classes, retrieval = (
        load_evalset(Store(str(tmp_path)), folder, tower) for folder in embedded_evalsets()
    )
    assert not classes.is_retrieval
    assert len(classes.labels) == len(classes.keys) == len(classes.embeddings)
    assert set(classes.labels) <= set(range(len(classes.classes)))
    assert retrieval.is_retrieval
    assert len(retrieval.texts) == len(retrieval.keys) == len(retrieval.embeddings)
    assert list(retrieval.image_of_text) == list(range(len(retrieval.keys)))


def test_dev_and_test_share_no_image() -> None:
    from capmix.pool import Sample, open_pool

    images: dict[str, set[bytes]] = {}
    for folder in embedded_evalsets():
        for part in ("dev", "test"):
            pool = open_pool(folder.replace("_test", f"_{part}") + "/test")
            found = (s.image for shard in pool.shards for s in pool.read(shard) if s)
            images.setdefault(part, set()).update(i for i in found if isinstance(i, bytes))
    assert images["dev"]
    assert not images["dev"] & images["test"]
    pool = open_pool("embedded")
    own = {s.image for x in pool.shards for s in pool.read(x) if isinstance(s, Sample)}
    assert not own & (images["dev"] | images["test"])


def test_a_folder_without_the_layout_is_named(tmp_path: Path, tower: LiteTower) -> None:
    with pytest.raises(UserError, match="no test/ folder"):
        load_evalset(Store(str(tmp_path)), str(tmp_path), tower)
