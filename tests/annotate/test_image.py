"""Columns of images: compared with plain loops, and run from the command line on a pool with near
duplicates, blank and broken images."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from samples import image_bytes, sample_members, tar_bytes

from capmix.annotate.hash_groups import hash_groups
from capmix.annotate.image_numbers import SIDE, colourfulness, entropy, image_numbers, sharpness
from capmix.cli.main import main
from capmix.errors import UserError
from capmix.models.images import BadImageError, decode_image
from capmix.workspace import Workspace, open_workspace

imagehash = pytest.importorskip("imagehash")


def as_bytes(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Return a smooth picture with some noise, different for each seed."""
    draw = np.random.default_rng(seed)
    smooth = Image.open(io.BytesIO(image_bytes(seed, size, "PNG")))
    pixels = np.asarray(smooth).astype(int) + draw.integers(-9, 10, (size[1], size[0], 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def slow_groups(hashes: np.ndarray, distance: int) -> list[int]:
    """Group by comparing all pairs, and spreading the smallest row number until nothing changes."""
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= distance
    groups = np.arange(len(hashes))
    while True:
        spread = np.where(near, groups[None], len(hashes)).min(axis=1)
        if (spread == groups).all():
            return groups.tolist()
        groups = spread


def flipped(hashes: np.ndarray, bits: int, draw: np.random.Generator) -> np.ndarray:
    """Return the hashes with up to `bits` random bits flipped."""
    found = hashes.copy()
    for _ in range(bits):
        found ^= np.uint64(1) << draw.integers(0, 64, len(found)).astype(np.uint64)
    return found


@pytest.mark.parametrize(("distance", "most"), [*((d, 2_048) for d in range(9)), (2, 4), (4, 16)])
def test_groups_equal_those_of_comparing_all_pairs(
    monkeypatch: pytest.MonkeyPatch, distance: int, most: int
) -> None:
    """With a small MOST, crowded runs are divided further."""
    monkeypatch.setattr("capmix.annotate.hash_groups.MOST", most)
    draw = np.random.default_rng(distance)
    hashes = draw.integers(0, 2**64, 300, np.uint64)
    near = [flipped(hashes[:60], bits, draw) for bits in range(1, 11)]
    crowded = draw.integers(0, 2**14, 200, np.uint64) << np.uint64(20)
    rows = draw.permutation(np.concatenate([hashes, *near, crowded, hashes[:5], hashes[:5]]))
    assert hash_groups(rows, distance).tolist() == slow_groups(rows, distance)


def test_groups_of_no_one_and_equal_hashes() -> None:
    assert hash_groups(np.zeros(0, np.uint64), 4).tolist() == []
    assert hash_groups(np.array([7], np.uint64), 4).tolist() == [0]
    assert (hash_groups(np.zeros(500_000, np.uint64), 4) == 0).all()  # all pairs: 10^11
    assert (hash_groups(np.arange(20_000, dtype=np.uint64), 1) == 0).all()


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    grey = np.asarray(noise(1).convert("L")).astype(int)
    values = [
        grey[y - 1, x] + grey[y + 1, x] + grey[y, x - 1] + grey[y, x + 1] - 4 * grey[y, x]
        for y in range(1, grey.shape[0] - 1)
        for x in range(1, grey.shape[1] - 1)
    ]
    assert sharpness(grey.astype(np.uint8)) == pytest.approx(np.var(values), rel=1e-12)
    blurred = noise(1).convert("L").filter(ImageFilter.GaussianBlur(2))
    assert (sharpness(np.asarray(blurred)) or 0) < np.var(values) / 10
    assert sharpness(np.zeros((2, 9), np.uint8)) is None


def test_entropy_is_that_of_the_grey_levels() -> None:
    levels = np.asarray(noise(2).convert("L")).ravel().tolist()
    shares = [levels.count(level) / len(levels) for level in set(levels)]
    expected = -sum(share * np.log2(share) for share in shares)
    assert entropy(noise(2).convert("L").histogram()) == pytest.approx(expected)
    assert entropy([9, *[0] * 255]) == 0
    assert entropy([5] * 256) == pytest.approx(8)


def test_colourfulness_is_the_papers_formula() -> None:
    pixels = np.asarray(noise(3)).astype(float)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    rg, yb = red - green, (red + green) / 2 - blue
    deviation, mean = np.hypot(rg.std(), yb.std()), np.hypot(rg.mean(), yb.mean())
    assert colourfulness(np.asarray(noise(3))) == pytest.approx(deviation + 0.3 * mean)
    grey = np.asarray(noise(3).convert("L").convert("RGB"))
    assert colourfulness(grey) == 0


def test_an_image_within_the_side_has_the_librarys_own_hash() -> None:
    picture = noise(4, (SIDE, 300))
    found = image_numbers(as_bytes(picture))
    assert found.phash == str(imagehash.phash(picture))
    assert found.aspect == SIDE / 300
    assert found.sharpness == sharpness(np.asarray(picture.convert("L")))


def test_a_large_image_is_reduced_and_its_hash_changes_by_few_bits() -> None:
    data = as_bytes(noise(5, (1600, 1200)), "JPEG", quality=90)
    found = image_numbers(data)
    whole = imagehash.phash(decode_image(data))
    assert whole - imagehash.hex_to_hash(found.phash) <= 4
    assert found.aspect == pytest.approx(4 / 3)


def test_odd_images_have_numbers_and_broken_ones_a_reason() -> None:
    assert image_numbers(as_bytes(Image.new("L", (1, 60_000)))).sharpness is None
    blank = image_numbers(as_bytes(Image.new("RGB", (30, 20), "white")))
    assert (blank.sharpness, blank.entropy, blank.colourfulness) == (0, 0, 0)
    with pytest.raises(BadImageError) as raised:
        image_numbers(as_bytes(noise(6))[:900])
    assert raised.value.reason == "broken_image"


def write_images(folder: Path) -> Path:
    """Write two shards: pictures 0 to 3, recompressed copies of two of them in the other shard, two
    blank images, and a broken one."""
    folder.mkdir()
    copies = [as_bytes(noise(0).resize((80, 60)), "JPEG", quality=60), as_bytes(noise(2), "WEBP")]
    blank = as_bytes(Image.new("RGB", (30, 20), "white"))
    images = [
        [*(as_bytes(noise(seed)) for seed in range(4)), as_bytes(noise(9))[:500]],
        [*copies, blank, blank],
    ]
    for number, some in enumerate(images):
        members = []
        for row, data in enumerate(some):
            key = f"{number}{row}"
            members += [
                (f"{key}.png", data) if name.endswith(".jpg") else (name, content)
                for name, content in sample_members(key, number * 10 + row, f"text {key}")
            ]
        (folder / f"{number}.tar").write_bytes(tar_bytes(members))
    return folder


def column(work: Workspace, name: str) -> dict[str, object]:
    """Return a column of both shards by key."""
    folder, _, field = name.rpartition("_")
    tables = [work.store.read_table(f"columns/{folder}/{shard}.parquet") for shard in "01"]
    return {
        key: value
        for table in tables
        for key, value in zip(table["key"].to_pylist(), table[field].to_pylist(), strict=True)
    }


def test_near_duplicates_of_a_pool_are_grouped_and_kept_once(tmp_path: Path) -> None:
    pool, work = str(write_images(tmp_path / "pool")), str(tmp_path / "w")
    assert main(["annotate", pool, "--work", work, "--method", "image"]) == 0
    opened = open_workspace(pool, work)
    groups = column(opened, "image_phash_group")
    assert groups["10"] == groups["00"] == f"{0:032x}"  # the uid of the first
    assert groups["11"] == groups["02"] == f"{2:032x}"
    assert groups["13"] == groups["12"] == f"{12:032x}"
    assert column(opened, "image_phash_count")["01"] == 1
    assert groups["04"] is None
    assert column(opened, "image_reason")["04"] == "broken_image"
    assert main(["mix", "--work", work, "--recipe", "near-duplicates"]) == 0
    kept = opened.subset("raw-near-duplicates").table()["uid"].to_pylist()
    assert sorted(int(uid, 16) for uid in kept) == [0, 1, 2, 3, 12]
    sharp = ["--where", "image_sharpness > 1 and image_aspect < 3", "--out", "sharp"]
    assert main(["mix", "--work", work, "--recipe", "raw", *sharp]) == 0
    assert len(opened.subset("sharp")) == 6  # neither blank nor broken


def test_a_rerun_computes_only_what_has_changed(tmp_path: Path) -> None:
    pool, work = str(write_images(tmp_path / "pool")), str(tmp_path / "w")
    opened = open_workspace(pool, work)
    assert opened.annotate(method="image").ok == 8
    place = tmp_path / "w/columns"
    paths = [place / "image/0.parquet", place / "image/1.parquet", place / "image_phash/0.parquet"]

    def times() -> list[int]:
        return [path.stat().st_mtime_ns for path in paths]

    before = times()
    opened.annotate(method="image")
    assert times() == before
    opened.annotate(method="image", distance=0)  # the images are not read again
    assert times()[:2] == before[:2]
    assert times()[2] > before[2]
    assert column(opened, "image_phash_count")["12"] == 2
    (tmp_path / "pool/1.tar").write_bytes(tar_bytes(sample_members("x", 77)))
    again = open_workspace(pool, work)
    assert again.annotate(method="image").ok == 5
    assert times()[0] == before[0]


def test_the_name_is_the_prefix_of_the_columns_and_failures_have_a_budget(tmp_path: Path) -> None:
    pool, work = str(write_images(tmp_path / "pool")), str(tmp_path / "w")
    command = ["annotate", pool, "--work", work, "--method", "image"]
    assert main([*command, "--max-failures", "0"]) == 2
    assert main([*command, "--name", "pixels"]) == 0
    assert "pixels_phash_group" in open_workspace(pool, work).columns()


def test_no_other_annotation_can_have_the_name_of_the_groups(tmp_path: Path) -> None:
    pool, work = str(write_images(tmp_path / "pool")), str(tmp_path / "w")
    opened = open_workspace(pool, work)
    opened.annotate(method="image")
    opened.score(model="mini", max_failures=0.5)
    for method in ("clusters", "image", "concepts", "text_area"):
        with pytest.raises(UserError, match="names that end in _phash are reserved"):
            opened.annotate(method=method, name="image_phash")
    assert column(opened, "image_phash_count")["12"] == 2


def test_the_groups_are_recomputed_by_the_command_in_the_hints(tmp_path: Path) -> None:
    pool, work = str(write_images(tmp_path / "pool")), str(tmp_path / "w")
    opened = open_workspace(pool, work)
    opened.annotate(method="image", name="photo")
    (tmp_path / "w/columns/photo_phash/1.parquet").unlink()
    expected = "capmix annotate --method image --name photo"
    assert opened.status().next == f"{expected} --work {work}"
    assert {one.made_by for one in opened.verify(discard=True).damaged} == {expected}
    with pytest.raises(UserError, match=f"Run `{expected}` first"):
        opened.mix("near-duplicates", image="photo")
    assert main(expected.split()[1:] + ["--work", work]) == 0
    assert len(opened.mix("near-duplicates", image="photo")) == 5


def test_groups_of_hashes_that_another_run_overwrites_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_workspace(str(write_images(tmp_path / "pool")), str(tmp_path / "w"))
    opened.annotate(method="image")

    def overwritten(hashes: np.ndarray, distance: int) -> np.ndarray:
        opened.store.remove_marker("columns/image/1")
        return hash_groups(hashes, distance)

    monkeypatch.setattr("capmix.annotate.image_groups.hash_groups", overwritten)
    with pytest.raises(UserError, match="its hashes were overwritten during the run"):
        opened.annotate(method="image", distance=0)
