import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from samples import image_bytes, sample_members, tar_bytes, write_pool

from capmix.errors import UserError
from capmix.mix.recipe import load_recipe
from capmix.pool import BadSample, open_pool
from capmix.training.pairs import ExportedShards, Pair, PairSource, PoolSubset, read_pairs
from capmix.workspace import Workspace, open_workspace


def all_pairs(source: PairSource) -> list[Pair]:
    found = [pair for shard in source.shards for pair in source.read(shard)]
    assert not [pair for pair in found if isinstance(pair, BadSample)]
    return [pair for pair in found if isinstance(pair, Pair)]


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    """A pool of 3 shards with two captions per image, some of which recipes mix and repeat."""
    write_pool(tmp_path / "pool", shards=3, samples=6)
    made = open_workspace(str(tmp_path / "pool"), str(tmp_path / "work"))
    rows = ["uid,text"]
    for shard in range(3):
        rows += [f"{shard * 100 + n:032x},caption {shard} {n}" for n in range(6) if n != 2]
    (tmp_path / "captions.csv").write_text("\n".join(rows))
    files = [str(tmp_path / "captions.csv")]
    made.import_captions(files, source="cap", uid_column="uid", text_column="text")
    return made


RECIPE = """
name: twice
about: some raw texts twice or three times, and captions of others
keep: all
clauses:
  - {source: raw, where: "uid < '00000000000000000000000000000065'", weight: 3}
  - {source: cap}
"""


@pytest.mark.parametrize("texts", [False, True])
def test_shards_and_pool_give_the_same_images_and_texts(
    work: Workspace, tmp_path: Path, texts: bool
) -> None:
    (tmp_path / "twice.yaml").write_text(RECIPE)
    work.mix(str(tmp_path / "twice.yaml"))
    work.export("twice", str(tmp_path / "out"), samples_per_shard=5)
    sources = ["raw", "cap"] if texts else []
    exported = all_pairs(ExportedShards([str(tmp_path / "out")], None, texts))
    streamed = all_pairs(PoolSubset(work.pool, work.store, "twice", sources))

    def multiset(pairs: list[Pair]) -> Counter[Any]:
        return Counter(
            (p.key, p.image, p.text, tuple(sorted(p.captions.items())) if texts else ())
            for p in pairs
        )

    assert len(exported) == 3 * 7 + 15
    assert multiset(exported) == multiset(streamed)
    assert load_recipe(str(tmp_path / "twice.yaml")).keep == "all"


def test_pairs_are_those_of_open_clips_own_reader(tmp_path: Path) -> None:
    """Keys up to the first dot, suffixes in any case, repeated suffixes, members in between."""
    from open_clip_train.data import filter_no_caption_or_no_image, tarfile_to_samples_nothrow

    members = [
        *sample_members("a", 1, "one"),
        *[("b.PNG", image_bytes(2, kind="PNG")), ("b.TXT", b"two")],
        ("c.txt", b"no image"),
        ("d.jpg", image_bytes(3)),
        *[("e.webp", image_bytes(4, kind="WEBP")), ("e.seg.png", b"mask"), ("e.txt", b"four")],
        *[("f.txt", b"first"), ("f.jpg", image_bytes(5)), ("f.jpg", image_bytes(6))],
        *[("f.txt", b"second"), ("g/h.jpg", image_bytes(7)), ("g/h.txt", b"in a folder")],
        *[("i.jpg", image_bytes(8)), ("i.png", image_bytes(9, kind="PNG")), ("i.txt", b"two")],
        *[("j.jpg", image_bytes(10)), ("j.txt", b"")],
    ]
    path = tmp_path / "00000.tar"
    path.write_bytes(tar_bytes(members))
    theirs = [
        (s["__key__"], next(s[x] for x in ("jpg", "png", "jpeg", "webp") if x in s), s["txt"])
        for s in tarfile_to_samples_nothrow([{"url": str(path)}])
        if filter_no_caption_or_no_image(s)
    ]
    with path.open("rb") as stream:
        ours = [
            (pair.key, pair.image, pair.text.encode())
            for pair in read_pairs(stream)
            if isinstance(pair, Pair)
        ]
    assert ours == theirs
    assert len(ours) == 8


def test_bad_samples_and_a_tar_that_breaks_off_are_told(tmp_path: Path) -> None:
    large = ("z.txt", b"x" * (2**20 + 1))
    members = [*sample_members("a", 1), ("b.jpg", b"x"), ("z.jpg", image_bytes(1)), large]
    data = tar_bytes([*members, *sample_members("c", 2)])
    (tmp_path / "00000.tar").write_bytes(data.rstrip(b"\0")[:-700])
    with (tmp_path / "00000.tar").open("rb") as stream:
        found = list(read_pairs(stream))
    reasons = [pair.reason if isinstance(pair, BadSample) else "ok" for pair in found]
    assert reasons[:3] == ["ok", "no_text", "too_many_bytes"]
    assert reasons[-1] == "truncated_shard"


def test_each_image_whose_key_has_a_dot_is_a_counted_row() -> None:
    members = [(f"img.{number:03d}.jpg", image_bytes(number)) for number in range(3)]
    found = list(read_pairs(io.BytesIO(tar_bytes(members))))
    assert [(one.key, one.reason) for one in found if isinstance(one, BadSample)] == [
        ("img.000", "dotted_key"), ("img.001", "dotted_key"), ("img.002", "dotted_key"),
    ]  # fmt: skip
    assert len(found) == 3


def test_captions_of_hostile_json_are_texts_or_nothing(tmp_path: Path) -> None:
    fields = {"caption_raw": 3, "caption_b": ["x"], "caption_choice": "raw", "caption_c": "good"}
    members = sample_members("a", 1, "t", **fields)
    deep = [("b.jpg", image_bytes(2)), ("b.txt", b"t"), ("b.json", b"[" * 100_000)]
    path = tmp_path / "00000.tar"
    path.write_bytes(tar_bytes([*members, *deep]))
    with path.open("rb") as stream:
        found = [pair for pair in read_pairs(stream, True) if isinstance(pair, Pair)]
    assert [pair.captions for pair in found] == [{"caption_c": "good"}, {}]


def test_a_pool_that_changed_is_refused(work: Workspace, tmp_path: Path) -> None:
    work.mix("raw")
    (tmp_path / "pool/00001.tar").write_bytes(tar_bytes(sample_members("new", 7)))
    changed = PoolSubset(open_pool(str(tmp_path / "pool")), work.store, "raw")
    with pytest.raises(UserError, match="00001 of the pool has changed"):
        _ = changed.shards
    (tmp_path / "pool/00001.tar").unlink()
    gone = PoolSubset(open_pool(str(tmp_path / "pool")), work.store, "raw")
    with pytest.raises(UserError, match="shard 00001, which is not in pool"):
        _ = gone.shards


def test_a_missing_subset_is_named(work: Workspace) -> None:
    with pytest.raises(UserError, match="no subset 'none'"):
        _ = PoolSubset(work.pool, work.store, "none").shards


def test_shards_are_named_as_open_clip_reads_them(tmp_path: Path) -> None:
    from webdataset.shardlists import expand_urls

    one = write_pool(tmp_path / "one", shards=3)
    two = write_pool(tmp_path / "two", shards=2)
    (two / "00000.tar").rename(two / "first.tar")
    text = ExportedShards([str(one), str(two)]).open_clip_urls()
    assert "{00000..00002}" in text
    assert sorted(expand_urls(text)) == sorted(str(p) for p in [*one.glob("*"), *two.glob("*")])


def test_weights_are_those_of_each_shard(tmp_path: Path) -> None:
    places = [str(write_pool(tmp_path / name, n)) for name, n in (("one", 2), ("two", 1))]
    assert ExportedShards(places, [1.0, 3.0]).weights == [1.0, 1.0, 3.0]


def test_what_has_no_tars_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(image_bytes(1))
    with pytest.raises(UserError, match="no tars to train on"):
        _ = ExportedShards([str(tmp_path)]).shards


def test_json_of_exports_gives_all_captions(work: Workspace, tmp_path: Path) -> None:
    work.mix("raw")
    work.export("raw", str(tmp_path / "out"))
    first = all_pairs(ExportedShards([str(tmp_path / "out")], None, True))[0]
    assert first.captions == {"caption_raw": "picture 0", "caption_cap": "caption 0 0"}
