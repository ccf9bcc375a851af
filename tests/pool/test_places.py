"""Locations of a pool: directories, files, patterns and combinations of them."""

import json
import os
from pathlib import Path

import fsspec
import pytest
from samples import image_bytes, write_pool

from capmix.cli.main import main
from capmix.errors import UserError
from capmix.pool import Pool, Sample, open_pool
from capmix.workspace import open_workspace


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tars in a/, b/train/ and c/train/, images in photos/ and more/photos/."""
    folder = tmp_path_factory.mktemp("pools")
    write_pool(folder / "a", 3, 1)
    for name in ("b/train", "c/train"):
        write_pool(folder / name, 2, 1)
    (folder / "a/00000_stats.json").write_text("{}")
    for name in ("photos", "more/photos"):
        (folder / name).mkdir(parents=True)
        for i in range(2):
            (folder / f"{name}/{i}.jpg").write_bytes(image_bytes(i))
            (folder / f"{name}/{i}.txt").write_text(f"{name} {i}")
    return folder


def names(pool: Pool) -> list[str]:
    return [shard.name for shard in pool.shards]


def samples(pool: Pool) -> list[Sample]:
    found = [sample for shard in pool.shards for sample in pool.read(shard)]
    assert all(isinstance(one, Sample) for one in found)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize(
    "pattern", ["a/*.tar", "a/{00000..00002}.tar", "a/[0-2]*.tar", "a/0000{0,1,2}.tar", "a/*"]
)
def test_a_pattern_in_one_folder_yields_the_shards_of_the_folder(root: Path, pattern: str) -> None:
    expected = open_pool(str(root / "a")).shards
    assert open_pool(f"{root}/{pattern}").shards == expected
    assert open_pool(f"file://{root}/{pattern}").shards == expected


def test_files_expanded_by_a_shell_yield_the_shards_of_the_folder(root: Path) -> None:
    files = sorted(str(path) for path in (root / "a").glob("*.tar"))
    assert open_pool(files).shards == open_pool(str(root / "a")).shards
    assert open_pool([*files[::-1], files[0]]).shards == open_pool(str(root / "a")).shards


@pytest.mark.parametrize(
    "places",
    [
        ["b", "c"],
        ["c/train/", "b/train"],
        ["*/train"],
        ["{b,c}/train"],
        ["{b,c}/*/*.tar"],
        ["b/train/*.tar", "c/train/{00000..00001}.tar"],
        ["[bc]/**/*.tar"],
    ],
)
def test_shards_of_several_folders_are_named_by_the_differing_part_of_the_path(
    root: Path, places: list[str]
) -> None:
    pool = open_pool([f"{root}/{place}" for place in places])
    assert names(pool) == ["b/train/00000", "b/train/00001", "c/train/00000", "c/train/00001"]
    assert len(samples(pool)) == len(samples(pool.reopened())) == 4


def test_images_of_several_folders_have_the_folder_in_their_key(root: Path) -> None:
    pool = open_pool([str(root / "photos"), str(root / "more")])
    assert names(pool) == ["more/00000", "photos/00000"]
    assert [(one.key, one.text) for one in samples(pool)] == [
        ("more/photos/0.jpg", "more/photos 0"),
        ("more/photos/1.jpg", "more/photos 1"),
        ("photos/0.jpg", "photos 0"),
        ("photos/1.jpg", "photos 1"),
    ]
    (root / "photos/0.jpg").rename(root / "kept")
    bad = next(iter(pool.read(pool.shards[1])))
    (root / "kept").rename(root / "photos/0.jpg")
    assert f"{root}/photos/0.jpg" in bad.detail  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "places", [["photos/*.jpg"], ["photos/*"], ["photos/0.jpg", "photos/1.jpg"]]
)
def test_images_that_are_named_bring_their_texts(root: Path, places: list[str]) -> None:
    pool = open_pool([f"{root}/{place}" for place in places])
    assert pool.shards == open_pool(str(root / "photos")).shards
    assert [one.text for one in samples(pool)] == ["photos 0", "photos 1"]


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (["x*.tar"], "no matching tar, image or parquet file"),
        (["a/{0..1}.tar"], "No such file or directory: '.*/a/0.tar'"),
        (["a/{0..9999999}.tar"], "over 1,000,000 names"),
        (["a", "photos"], "a holds tars, but .*photos holds images; give only one kind"),
        (["a/00000.tar", "photos/0.jpg"], "holds tars, but .* holds images; give only one kind"),
        (["*"], "give only one kind"),
        (["b", "b/train"], "it is inside .*/b, which is also given"),
        (["b", "b/train/00000.tar"], "it is inside .*/b, which is also given"),
        (["b", "b/"], "given twice"),
        (["a", "none"], "none: no such file or directory"),
    ],
)
def test_locations_that_are_not_a_pool_are_a_one_line_error(
    root: Path, places: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        open_pool([f"{root}/{place}" for place in places])
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="`embedded` cannot be combined with other locations"):
        open_pool(["embedded", f"{root}/a"])


def test_patterns_in_a_bucket_are_matched_in_the_bucket(root: Path) -> None:
    memory = fsspec.filesystem("memory")
    for place in ("a", "b"):
        memory.put(str(root / "b/train"), f"/bucket/{place}", recursive=True)
    memory.pipe("/bucket/notes.md", b"x")
    try:
        assert names(open_pool("memory://bucket/a/*.tar")) == ["00000", "00001"]
        for places in (["memory://bucket/*"], ["memory://bucket/a", "memory://bucket/b"]):
            pool = open_pool(places)
            assert names(pool) == ["a/00000", "a/00001", "b/00000", "b/00001"]
            assert len(samples(pool)) == 4
        pool = open_pool(["memory://bucket/a", str(root / "b")])
        assert names(pool)[0] == f"file{root}/b/train/00000"
        assert names(pool)[-1] == "memory/bucket/a/00001"
        with pytest.raises(UserError, match="no such file"):
            open_pool("memory://bucket/a/{00001..00002}.tar")
    finally:
        memory.rm("/bucket", recursive=True)


def test_links_that_a_pattern_finds_are_skipped_where_they_leave_its_folder(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "p").mkdir()
    write_pool(tmp_path / "p", 1, 1)
    (tmp_path / "p/link.tar").symlink_to(root / "a/00001.tar")
    (tmp_path / "p/inner.tar").symlink_to("00000.tar")
    os.mkfifo(tmp_path / "p/fifo.tar")
    pattern = f"{tmp_path}/p/*.tar"
    assert names(open_pool(pattern)) == ["00000", "inner"]
    assert "2 entries skipped (1 FIFO, 1 link that leaves the pool), for example" in caplog.text
    assert names(open_pool(pattern, follow_links=True)) == ["00000", "inner", "link"]
    assert names(open_pool(f"{tmp_path}/p/link.tar")) == ["link"]


def test_a_work_directory_remembers_several_places(root: Path, tmp_path: Path) -> None:
    work, places = str(tmp_path / "w"), [str(root / "b"), str(root / "c")]
    assert main(["mix", *places, "--work", work, "--recipe", "raw"]) == 0
    assert json.loads((tmp_path / "w/pool.json").read_text()) == {"pool": places}
    assert main(["mix", "--work", work, "--recipe", "raw"]) == 0
    opened = open_workspace(places[::-1], work)
    assert opened.pool.location == f"{places[1]} and 1 more"
    assert len(opened.pool.shards) == 4
    with pytest.raises(UserError, match="belongs to the pool .* and 1 more, not to .*quote the"):
        open_workspace(str(root / "b"), work)
    for out in (root / "b/out", root / "c/train/out"):
        with pytest.raises(UserError, match="is inside the pool"):
            opened.export("raw", out)
        with pytest.raises(UserError, match="is inside the pool"):
            open_workspace(places, str(out))


def test_a_pipeline_file_names_several_places(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    places = f"[{root}/b, '{root}/c/*/*.tar']"
    file.write_text(f"pool: {places}\nwork: {tmp_path / 'w'}\nmix: {{recipes: [raw]}}\n")
    assert main(["run", str(file)]) == 0
    pool = open_workspace(work=str(tmp_path / "w")).pool
    assert names(pool) == ["b/train/00000", "b/train/00001", "c/train/00000", "c/train/00001"]


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path: Path) -> None:
    for name in ("[1]", "{a,b}", "x*"):
        write_pool(tmp_path / name, 1, 1)
        assert names(open_pool(str(tmp_path / name))) == ["00000"]


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """Two images in d/a, and links to its parent and siblings."""
    (tmp_path / "d/a").mkdir(parents=True)
    for i in range(2):
        (tmp_path / f"d/a/{i}.jpg").write_bytes(image_bytes(i))
    (tmp_path / "d/loop").symlink_to(".")
    (tmp_path / "d/loop2").symlink_to(".")
    (tmp_path / "d/b").symlink_to("a")
    return tmp_path


@pytest.mark.parametrize("pattern", ["d/**/*.jpg", "d/*/*.jpg", "d/*", "*/a/*", "{d,e*}/*/*.jpg"])
@pytest.mark.parametrize("follow_links", [False, True])
def test_a_pattern_finds_each_file_once_whatever_links_lead_to_it(
    linked: Path, pattern: str, follow_links: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = open_pool(f"{linked}/{pattern}", follow_links)
    assert [Path(pool.path(name)) for shard in pool.shards for name in pool.files[shard.name]] == [
        linked / "d/a/0.jpg",
        linked / "d/a/1.jpg",
    ]
    if pattern != "*/a/*":
        kind = "links to folders that are already listed" if follow_links else "linked folders"
        assert kind in caplog.text


def test_a_linked_folder_that_matches_a_pattern_is_read_if_links_are_followed(
    linked: Path, tmp_path: Path
) -> None:
    (linked / "e").mkdir()
    (linked / "e/there").symlink_to(linked / "d/a")
    with pytest.raises(UserError, match="1 linked folder.*Use --follow-links to read"):
        open_pool(f"{linked}/e/*/*.jpg")
    assert len(samples(open_pool(f"{linked}/e/*/*.jpg", follow_links=True))) == 2
    assert len(samples(open_pool(f"{linked}/e/**/*.jpg", follow_links=True))) == 2


def test_a_file_that_two_places_name_is_refused(linked: Path) -> None:
    for pattern in ("*/*.jpg", "**/*.jpg"):
        with pytest.raises(UserError, match=r"d/a/0.jpg is matched by two locations; give it once"):
            open_pool([f"{linked}/d/{pattern}", f"{linked}/d/a"])


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar in each of three folders, and a link to a folder that contains two of them."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("s/a", "s/a/b", "t/a"):
        write_pool(folder / name, 1, 1)
    (folder / "link").symlink_to("s")
    return folder


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("s/*/*.tar", ["s/mixed", "s/a", "s/mixed.tar/x.tar"], ["s", "t", "s/.hidden", "s/a/b/c"]),
        ("s/*", ["s/out", "s/out/deep", "s"], ["t", ".", "s/.out"]),
        ("s/a/*.tar", ["s/a", "s/a/x.tar"], ["s", "s/a/out", "s/b"]),
        ("{s,t}/*/*.tar", ["s/mixed", "t/mixed"], ["u/mixed"]),
        ("s/**/*.tar", ["s", "s/mixed/deep"], ["t"]),
        ("*/a/*.tar", ["b/a"], ["b", "b/b", "."]),
        ("s/*/*/*.tar", ["s/shards/x"], ["s", "s/shards", "s/shards/x/y"]),
        ("s/a/*", ["s/a/x"], ["s/b"]),
    ],
)
def test_a_pattern_holds_the_directories_whose_exports_it_would_match(
    tree: Path, pattern: str, inside: list[str], outside: list[str]
) -> None:
    pool = open_pool(f"{tree}/{pattern}")
    assert [one for one in inside if not pool.holds(f"{tree}/{one}")] == []
    assert [one for one in outside if pool.holds(f"{tree}/{one}")] == []


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("s/*", ["s/work", "s", "link/work"], ["t", ".", "s/.work"]),
        ("s/*/*.tar", ["s/work.tar/x.tar"], ["s/work", "s", "."]),
        ("s/*/*/*.tar", ["s"], ["s/work", "."]),
        ("s/a/*.tar", [], ["s/a", "s/work"]),
        ("*/a/*.tar", [], ["work", "."]),
        ("s/**/*.tar", ["s/work"], ["."]),
    ],
)
def test_a_pattern_holds_the_work_directories_whose_files_it_would_match(
    tree: Path, pattern: str, inside: list[str], outside: list[str]
) -> None:
    pool = open_pool(f"{tree}/{pattern}")
    assert [one for one in inside if not pool.holds(f"{tree}/{one}", is_work=True)] == []
    assert [one for one in outside if pool.holds(f"{tree}/{one}", is_work=True)] == []


def test_an_export_that_the_pools_pattern_would_match_is_refused(tmp_path: Path) -> None:
    write_pool(tmp_path / "s/a", 1, 1)
    pattern = f"{tmp_path}/s/*/*.tar"
    work = open_workspace(pattern, str(tmp_path / "w"))
    work.mix("raw")
    for out in ("s/mixed", "s/a"):
        with pytest.raises(UserError, match=r"--out .* is inside the pool .*/s/\*/\*.tar; choose"):
            work.export("raw", tmp_path / out)
    work.export("raw", tmp_path / "mixed")
    with pytest.raises(UserError, match=r"work directory .* is inside the pool .*/s/\*; outputs"):
        open_workspace(f"{tmp_path}/s/*", str(tmp_path / "s/work"))
    assert not (tmp_path / "s/work").exists()
