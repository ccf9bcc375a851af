"""Readers use the versions of parts that they started with, and never join old and new parts."""

from pathlib import Path
from typing import Any

import pytest
import small_world as world

from capmix.errors import UserError
from capmix.mix import mix as mixing
from capmix.storage.store import Store
from capmix.workspace import Workspace


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    folder = world.write_world(tmp_path)
    made = world.opened(folder, str(folder / "work"))
    world.caption(made, "first")
    world.score(made)
    return made


def again(tmp_path: Path, field: str) -> None:
    other = world.opened(tmp_path, str(tmp_path / "work"))
    world.caption(other, field, force=True)


def test_a_mix_during_caption_force_is_refused(
    work: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The captions are rewritten after mix has read the markers, but before it reads the texts."""
    real = mixing.find_thresholds

    def interrupted(*arguments: Any) -> Any:
        again(tmp_path, "second")
        return real(*arguments)

    monkeypatch.setattr(mixing, "find_thresholds", interrupted)
    with pytest.raises(
        UserError, match="captions/tags/0000[01] was rewritten while it was being read"
    ):
        world.mix(work, tmp_path)
    assert work.store.read_marker("subsets/s") is None


def test_parts_without_digests_are_looked_at_again_at_the_end(
    work: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of capmix 0.1 have no digests, and captions of the same length have the same size."""
    import json

    for path in (tmp_path / "work/.markers").rglob("*.json"):
        value = json.loads(path.read_text())
        del value["check"]
        files = {name: about["bytes"] for name, about in value["files"].items()}
        path.write_text(json.dumps(value | {"format": 1, "files": files}))
    world.score(work)  # the rewritten markers made the scores stale
    real = mixing.kept_rows

    def interrupted(*arguments: Any) -> Any:
        yield from real(*arguments)
        again(tmp_path, "second")

    monkeypatch.setattr(mixing, "kept_rows", interrupted)
    with pytest.raises(UserError, match="was rewritten while it was being read"):
        world.mix(work, tmp_path)
    assert work.store.read_marker("subsets/s") is None


def test_stale_scores_are_refused_where_the_texts_are_not_even_read(
    work: Workspace, tmp_path: Path
) -> None:
    again(tmp_path, "second")
    recipe = tmp_path / "of_scores.yaml"
    recipe.write_text(
        "name: t\nabout: raw where the caption scores\n"
        "clauses:\n  - {source: raw, where: tags_score > 0}\n"
    )
    with pytest.raises(UserError, match="in captions/tags were rewritten after it was scored"):
        work.mix(str(recipe))


def test_a_shard_whose_input_is_written_again_is_tried_again(
    work: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The captions of a shard are rewritten after scoring has read them and before it finishes."""
    again(tmp_path, "second")
    real, done = Store.read_table, []

    def interrupted(self: Store, name: str, *arguments: Any, **named: Any) -> Any:
        table = real(self, name, *arguments, **named)
        if name == "captions/tags/00000.parquet" and not done:
            done.append(name)
            again(tmp_path, "first")
        return table

    monkeypatch.setattr(Store, "read_table", interrupted)
    fresh = world.opened(tmp_path, str(tmp_path / "work"))
    world.score(fresh)
    assert done
    monkeypatch.setattr(Store, "read_table", real)
    world.mix(fresh, tmp_path)
    assert world.wrong_rows(fresh, world.samples(tmp_path)) == []


def test_captions_of_two_settings_are_not_mixed(work: Workspace, tmp_path: Path) -> None:
    """`caption --force` was interrupted after the first shard."""
    before = tmp_path / "work/.markers/captions/tags/00001.json", tmp_path / "kept.json"
    part = tmp_path / "work/captions/tags/00001.parquet", tmp_path / "kept.parquet"
    for here, kept in (before, part):
        kept.write_bytes(here.read_bytes())
    again(tmp_path, "second")
    for here, kept in (before, part):
        here.write_bytes(kept.read_bytes())
    recipe = tmp_path / "texts.yaml"
    recipe.write_text("name: t\nabout: captions\nclauses:\n  - {source: tags}\n")
    with pytest.raises(
        UserError,
        match="captions/tags contains parts with different settings: shard 0000.* with --force",
    ):
        work.mix(str(recipe))


def test_an_export_of_a_subset_that_is_mixed_again_is_refused(
    work: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from capmix.export import export as exporting

    world.mix(work, tmp_path)
    real = exporting.chosen_samples

    def interrupted(*arguments: Any) -> Any:
        yield from real(*arguments)
        world.mix(work, tmp_path, 1)

    monkeypatch.setattr(exporting, "chosen_samples", interrupted)
    with pytest.raises(UserError, match="subset s was rewritten while it was being read"):
        world.export(work, str(tmp_path / "out"))
    monkeypatch.setattr(exporting, "chosen_samples", real)
    world.export(work, str(tmp_path / "out"))
    assert work.verify(exports=[tmp_path / "out"]).damaged == []


def test_an_import_is_refused_where_the_pool_is_indexed_again_meanwhile(
    work: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions in the old index would refer to other samples in the new one."""
    import os

    from capmix.annotate import imported

    rows = [f"{uid},text of {uid}" for uid in world.samples(tmp_path)]
    (tmp_path / "given.csv").write_text("\n".join(["uid,text", *rows]) + "\n")
    real = imported.check_usable

    def interrupted(*arguments: Any) -> Any:
        os.utime(tmp_path / "pool/00000.tar", (1, 1))
        world.opened(tmp_path, str(tmp_path / "work")).index()
        return real(*arguments)

    monkeypatch.setattr(imported, "check_usable", interrupted)
    with pytest.raises(UserError, match="the index of shard 00000 was overwritten during"):
        work.import_captions(tmp_path / "given.csv", source="given")


def test_an_export_of_stale_texts_is_refused_before_anything_is_removed(
    work: Workspace, tmp_path: Path
) -> None:
    world.mix(work, tmp_path)
    work.mix("raw")
    work.export("raw", tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    again(tmp_path, "second")
    for form in ("webdataset", "csv"):
        with pytest.raises(UserError, match="subset s refers to .*captions/tags, whose shard"):
            work.export("s", tmp_path / "out", format=form)
    assert before == {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}


def test_a_subset_with_its_texts_outlives_the_captions(work: Workspace, tmp_path: Path) -> None:
    recipe = tmp_path / "tags.yaml"
    recipe.write_text("name: t\nabout: captions\nclauses:\n  - {source: tags}\n")
    work.mix(str(recipe), texts=True)
    before = work.subset("t").table()
    again(tmp_path, "second")
    assert work.subset("t").table() == before
    counts = work.export("t", tmp_path / "out", format="csv")
    assert counts.ok == len(before)


def test_training_on_stale_texts_is_refused_at_once(work: Workspace, tmp_path: Path) -> None:
    from capmix.training.pairs import PoolSubset

    world.mix(work, tmp_path)
    again(tmp_path, "second")
    with pytest.raises(UserError, match="subset s refers to .*captions/tags, whose shard"):
        _ = PoolSubset(work.pool, work.store, "s").shards


def test_a_pool_that_lacks_a_shard_of_a_subset_is_one_line(work: Workspace, tmp_path: Path) -> None:
    world.mix(work, tmp_path)
    (tmp_path / "pool/00001.tar").unlink()
    fresh = world.opened(tmp_path, str(tmp_path / "work"))
    with pytest.raises(UserError, match="subset s uses shard 00001, which is not in pool"):
        fresh.export("s", tmp_path / "out")
