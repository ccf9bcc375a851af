from pathlib import Path

import numpy as np
import pytest

from capmix.caption.settings import CaptionSettings
from capmix.errors import UserError
from capmix.mini.image_tower import LiteTower
from capmix.models.image_pass import embed_stage
from capmix.probe.fit import FitSettings, load_probe, load_training_set, train_probes
from capmix.probe.towers import Towers
from capmix.workspace import Workspace, open_workspace

QUICK = FitSettings(steps=40, batch_size=64)
SUBSET = "oracle-keywords"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("train")
    from capmix.pool import embedded_folder

    shard = sorted((embedded_folder() / "pool").glob("*.tar.gz"))[0]
    (folder / "pool").mkdir()
    (folder / "pool" / shard.name).write_bytes(shard.read_bytes())
    work = open_workspace(str(folder / "pool"), str(folder / "work"))
    work.caption("keywords", CaptionSettings(model="field:keywords"))
    work.mix("oracle")
    work.run(lambda: [embed_stage(work.pool, LiteTower())])
    return work


def test_a_probe_learns_its_training_pairs(work: Workspace) -> None:
    (name,) = train_probes(work.store, SUBSET, [0], settings=QUICK)
    marker = work.store.read_marker(name)
    assert marker is not None
    losses = marker.extra["losses"]
    assert losses[-1] < losses[0] - 0.5
    samples = load_training_set(work.store, SUBSET)
    images = load_probe(work.store, name).project_images(samples.images)
    assert np.allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)


def test_only_the_seed_determines_the_weights(work: Workspace) -> None:
    probes = [train_probes(work.store, SUBSET, [1, 2], settings=QUICK) for _ in range(2)]
    first, other = (load_probe(work.store, name) for name in probes[0])
    for name in probes[0]:
        work.store.fs.rm(work.store.path(f".markers/{name}.json"))
    again = load_probe(work.store, train_probes(work.store, SUBSET, [1], settings=QUICK)[0])
    assert np.array_equal(first.image_projection, again.image_projection)
    assert not np.array_equal(first.image_projection, other.image_projection)


def test_rows_are_repeated_by_their_weight(work: Workspace) -> None:
    once = load_training_set(work.store, SUBSET)
    path = Path(work.store.path("twice.yaml"))
    path.write_text("name: twice\nabout: x\nclauses: [{source: raw, weight: 2}]\n")
    work.mix(str(path), out="weighted")
    weights = work.store.read_table("subsets/weighted.parquet", ["weight"])["weight"]
    twice = load_training_set(work.store, "weighted")
    assert len(once.images) == once.counts.ok
    assert twice.counts.total == sum(weights.to_pylist())


def test_only_some_shards_of_a_large_subset_are_loaded(
    work: Workspace, tower: LiteTower, tmp_path: Path
) -> None:
    whole = load_training_set(work.store, SUBSET)
    pool = Path(work.pool.root)
    (tmp_path / "pool").mkdir()
    for name in ("00000.tar.gz", "00001.tar.gz"):
        (tmp_path / "pool" / name).write_bytes((pool / "00000.tar.gz").read_bytes())
    two = open_workspace(str(tmp_path / "pool"), str(tmp_path / "work"))
    two.mix("raw")
    two.run(lambda: [embed_stage(two.pool, tower)])
    some = load_training_set(two.store, "raw", Towers(max_rows=10))
    assert 0 < len(some.images) < 1.1 * len(whole.images) + 100


def test_a_missing_subset_is_named(work: Workspace) -> None:
    with pytest.raises(UserError, match="no subset 'none'"):
        work.probe(subsets=["none"])
