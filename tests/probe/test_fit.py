from pathlib import Path

import numpy as np
import pytest

from capmix import jobs
from capmix.caption.settings import CaptionSettings
from capmix.errors import UserError
from capmix.mini.image_tower import LiteTower
from capmix.probe.fit import ProbeSettings, load_probe, load_training_set, train_probes

QUICK = ProbeSettings(steps=40, batch_size=64)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[jobs.Work, str]:
    folder = tmp_path_factory.mktemp("train")
    from capmix.pool import embedded_folder

    shard = sorted((embedded_folder() / "pool").glob("*.tar.gz"))[0]
    (folder / "pool").mkdir()
    (folder / "pool" / shard.name).write_bytes(shard.read_bytes())
    work = jobs.open_work(str(folder / "pool"), str(folder / "work"))
    jobs.caption(work, "keywords", CaptionSettings(model="field:keywords"))
    jobs.mix(work, "oracle")
    out = str(folder / "shards")
    jobs.export(work, "oracle-keywords", out)
    return work, out


def test_a_student_learns_its_training_pairs(
    exported: tuple[jobs.Work, str], tower: LiteTower
) -> None:
    work, data = exported
    (name,) = train_probes(work.store, data, "a", [0], tower, QUICK)
    marker = work.store.read_marker(name)
    assert marker is not None
    losses = marker.extra["losses"]
    assert losses[-1] < losses[0] - 0.5
    samples = load_training_set(work.store, data, tower)
    student = load_probe(work.store, name)
    images = student.project_images(samples.images)
    assert np.allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)


def test_the_seed_alone_decides_the_weights(
    exported: tuple[jobs.Work, str], tower: LiteTower
) -> None:
    work, data = exported
    first = load_probe(work.store, train_probes(work.store, data, "b", [1], tower, QUICK)[0])
    again = load_probe(work.store, train_probes(work.store, data, "c", [1], tower, QUICK)[0])
    other = load_probe(work.store, train_probes(work.store, data, "c", [2], tower, QUICK)[0])
    assert np.array_equal(first.image_projection, again.image_projection)
    assert not np.array_equal(first.image_projection, other.image_projection)


def test_what_is_no_export_is_named(tmp_path: Path, tower: LiteTower) -> None:
    with pytest.raises(UserError, match="capmix export"):
        jobs.probe(jobs.open_work("embedded", str(tmp_path / "w")), str(tmp_path), "x")
