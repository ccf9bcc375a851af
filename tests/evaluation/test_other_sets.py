import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evalsets import (
    CLASSES,
    npy,
    write_classification,
    write_hub_retrieval,
    write_retrieval,
    write_winogavil,
)
from samples import image_bytes, tar_bytes

from capmix.errors import UserError
from capmix.evaluation.other_sets import open_evalset


def test_webdataset_sets_in_the_order_of_their_tars(tmp_path: Path) -> None:
    labels = [n % 6 for n in range(24)]
    metadata = [[n, 2 * n] for n in range(24)]
    write_classification(tmp_path / "set", labels, metadata=metadata, shards=12)
    found = open_evalset(str(tmp_path / "set"))
    items = list(found.items())
    assert (found.kind, found.classes) == ("classification", CLASSES)
    assert [item.label for item in items] == labels
    assert [list(item.metadata) for item in items] == metadata
    assert [item.image for item in items] == [image_bytes(n, kind="WEBP") for n in range(24)]


def test_retrieval_sets_have_a_caption_a_line(tmp_path: Path) -> None:
    captions = [["one", "two"], ["three"], ["four", "five", "six"]]
    for write, name in ((write_retrieval, "wds"), (write_hub_retrieval, "hub")):
        found = open_evalset(str(write(tmp_path / name, captions)))
        assert found.kind == "retrieval"
        items = list(found.items())
        assert [list(item.texts) for item in items] == captions
        assert items[1].image == image_bytes(1)


def test_winogavil_as_the_hub_has_it(tmp_path: Path) -> None:
    instances = [("Fur", ["a", "b", "c"], ["a"]), ("sky", ["b", "d"], ["d", "b"])]
    found = open_evalset(str(write_winogavil(tmp_path / "winogavil", instances)))
    assert found.kind == "association"
    assert {item.key for item in found.items()} == {"a", "b", "c", "d"}
    assert [(a.cue, a.candidates, a.chosen) for a in found.associations] == [
        (cue, tuple(some), tuple(own)) for cue, some, own in instances
    ]


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    for name, count in (("b_dog", 2), ("a_cat", 1)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.PNG").write_bytes(image_bytes(number, kind="PNG"))
    (tmp_path / "a_cat/notes.txt").write_text("no image")
    found = open_evalset(str(tmp_path))
    assert (found.classes, found.templates) == (["a cat", "b dog"], ["a photo of a {c}."])
    assert [item.label for item in found.items()] == [0, 1, 1]
    before = found.digest
    (tmp_path / "classnames.txt").write_text("a kitten\na hound\n")
    assert open_evalset(str(tmp_path)).classes == ["a kitten", "a hound"]
    assert open_evalset(str(tmp_path)).digest != before


def test_pairs_in_parquet(tmp_path: Path) -> None:
    images = [image_bytes(n) for n in range(3)]
    plain = pa.table({"image": images, "caption": ["one", "two", "three"]})
    nested = pa.table(
        {
            "image": [{"bytes": i, "path": ""} for i in images],
            "captions": [["a", "b"], ["c"], ["d"]],
        }
    )
    for name, table, texts in (
        ("plain", plain, [("one",), ("two",), ("three",)]),
        ("nested", nested, [("a", "b"), ("c",), ("d",)]),
    ):
        pq.write_table(table, tmp_path / f"{name}.parquet")
        found = open_evalset(str(tmp_path / f"{name}.parquet"))
        assert [item.texts for item in found.items()] == texts
        assert [item.image for item in found.items()] == images


def test_embedded_sets_open_and_dev_shares_no_image_with_test() -> None:
    from capmix.evaluation.embedded import embedded_evalsets
    from capmix.pool import Sample, open_pool

    images: dict[str, set[bytes]] = {"dev": set(), "test": set()}
    for folder in embedded_evalsets():
        for part, seen in images.items():
            found = open_evalset(folder.replace("_test", f"_{part}"))
            seen.update(item.image for item in found.items())
            if found.kind == "classification":
                assert {item.label for item in found.items()} <= set(range(len(found.classes)))
    assert images["dev"]
    assert not images["dev"] & images["test"]
    pool = open_pool("embedded")
    own = {s.image for x in pool.shards for s in pool.read(x) if isinstance(s, Sample)}
    assert not own & (images["dev"] | images["test"])


def break_label(root: Path) -> None:
    members = [("s0.jpg", image_bytes(0)), ("s0.cls", b"6")]
    (root / "test/0.tar").write_bytes(tar_bytes(members))


def break_pickle(root: Path) -> None:
    object_array = npy([1]).replace(b"<i8", b"|O8")
    members = [("s0.jpg", image_bytes(0)), ("s0.cls", b"0"), ("s0.npy", object_array)]
    (root / "test/0.tar").write_bytes(tar_bytes(members))


def break_array(root: Path) -> None:
    members = [("s0.jpg", image_bytes(0)), ("s0.cls", b"0"), ("s0.npy", b"")]
    (root / "test/0.tar").write_bytes(tar_bytes(members))


def break_text(root: Path) -> None:
    (root / "classnames.txt").write_bytes(b"caf\xe9")


def break_image(root: Path) -> None:
    (root / "test/0.tar").write_bytes(tar_bytes([("s0.cls", b"1")]))


def break_tar(root: Path) -> None:
    (root / "test/0.tar").write_bytes((root / "test/0.tar").read_bytes()[:-10_000])


def break_number(root: Path) -> None:
    (root / "test/1.tar").unlink()


def break_classes(root: Path) -> None:
    (root / "classnames.txt").unlink()


def break_kind(root: Path) -> None:
    (root / "dataset_type.txt").write_text("multilabel")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (break_label, "label '6', expected 0 to 5"),
        (break_pickle, "sample s0: .npy member"),
        (break_array, "sample s0: .npy member"),
        (break_text, "classnames.txt: 'utf-8' codec"),
        (break_image, "sample s0: expected an image"),
        (break_tar, "Download it again"),
        (break_number, "1 tars, but nshards.txt expects 2"),
        (break_classes, "classnames.txt is missing"),
        (break_kind, "sets of type multilabel are not supported"),
    ],
)
def test_a_broken_set_is_told(tmp_path: Path, damage: object, told: str) -> None:
    root = write_classification(tmp_path / "set", [0, 1, 2, 3, 4, 5])
    damage(root)  # type: ignore[operator]
    with pytest.raises(UserError, match=told):
        list(open_evalset(str(root)).items())


def test_the_digest_changes_with_the_data_and_not_with_its_time(tmp_path: Path) -> None:
    root = write_classification(tmp_path / "set", [0, 1, 2, 3, 4, 5])
    before = open_evalset(str(root)).digest
    tar = root / "test/0.tar"
    data = tar.read_bytes()
    tar.write_bytes(data)
    assert open_evalset(str(root)).digest == before
    changed = data.replace(b"webp", b"webq", 1)
    tar.write_bytes(changed)
    assert open_evalset(str(root)).digest != before
    folders = tmp_path / "folders"
    (folders / "dog").mkdir(parents=True)
    (folders / "dog/0.jpg").write_bytes(image_bytes(0))
    before = open_evalset(str(folders)).digest
    (folders / "dog").rename(folders / "hound")
    assert open_evalset(str(folders)).digest != before


def test_what_is_no_set_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not found, or not a supported format"):
        open_evalset(str(tmp_path / "none"))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="found a"):
        open_evalset(str(tmp_path / "x.parquet"))
    hub = write_hub_retrieval(tmp_path / "hub", [["one"]])
    with zipfile.ZipFile(hub / "images.zip", "w") as archive:
        archive.writestr("other.jpg", b"")
    with pytest.raises(UserError, match=r"image 0\.jpg is missing"):
        list(open_evalset(str(hub)).items())
    (hub / "test.csv").write_text('filename,raw\n0.jpg,"not json"\n')
    with pytest.raises(UserError, match="is not a JSON list"):
        open_evalset(str(hub))


def test_a_blank_line_of_a_list_is_a_class_or_a_template(tmp_path: Path) -> None:
    """As in CLIP_benchmark 1.6.2: skipping a line would shift the labels after it."""
    classes, templates = ["cat", "", " dog ", ""], ["a photo of {c}.", ""]
    found = open_evalset(str(write_classification(tmp_path / "set", [3, 2], classes, templates)))
    assert (found.classes, found.templates) == (["cat", "", "dog", ""], ["a photo of {c}.", ""])
    assert [item.label for item in found.items()] == [3, 2]
    from clip_benchmark.datasets.builder import build_dataset

    (tmp_path / "set/test/nshards.txt").write_text("2")
    theirs = build_dataset("wds/set", root=str(tmp_path / "set"), split="test", download=False)
    assert (found.classes, found.templates) == (theirs.classes, theirs.templates)
