"""Sorting within bounded memory and few open files."""

import io
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from parts import HandMade, Made, fresh_folder
from samples import write_pool

from capmix.errors import UserError
from capmix.mix.recipe import MAX_REPEATS, Clause, Recipe
from capmix.mix.uids import COUNTED, PAIR, PairSorter, UidList, write_npy

ROW = np.dtype([("f0", "u8"), ("f1", "u8"), ("row", "i8")])


@pytest.mark.parametrize("kept", [1, 1 << 12, 1 << 26])
def test_equal_pairs_stay_in_the_order_in_which_they_came(kept: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    records = np.empty(5_000, ROW)
    records["f0"] = rng.integers(0, 40, 5_000).astype(np.uint64) << np.uint64(58)
    records["f1"] = rng.integers(0, 3, 5_000)
    records["row"] = np.arange(5_000)
    sorter = PairSorter(str(tmp_path), ROW, kept)
    for batch in np.array_split(records, 7):
        sorter.add(batch)
    found = np.concatenate(list(sorter.sorted()))
    assert found.tolist() == sorted(records.tolist())
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_sorted_into_nothing(tmp_path: Path) -> None:
    sorter = PairSorter(str(tmp_path))
    assert sum(len(batch) for batch in sorter.sorted()) == 0


def test_no_file_stays_open_while_records_are_added(tmp_path: Path) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = opened()
    sorter = PairSorter(str(tmp_path), PAIR, kept=1)
    records = np.zeros(256, PAIR)
    records["f0"] = np.arange(256, dtype=np.uint64) << np.uint64(56)
    sorter.add(records)
    assert opened() == before
    assert len(list(tmp_path.iterdir())) == 256
    sorter.close()
    assert list(tmp_path.iterdir()) == []


def test_a_mix_needs_few_open_files(tmp_path: Path) -> None:
    pool, work = str(write_pool(tmp_path / "pool", 70, 1)), str(tmp_path / "w")
    command = ["mix", pool, "--work", work, "--recipe", "raw", "--distinct", "raw_text", "--npy"]
    done = subprocess.run(
        [sys.executable, "-m", "capmix", *command, "--out", "d"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    )
    assert (done.returncode, done.stderr.splitlines()[-1][:6]) == (0, "index:")
    assert "70 rows kept" in done.stdout
    assert len(np.load(tmp_path / "w/subsets/d.npy")) == 70


def test_pairs_are_repeated_in_pieces_that_do_not_grow_with_their_weight() -> None:
    records = np.array([(3, 1, 2_000_000), (3, 1, 0), (5, 2, 3)], COUNTED)
    sizes: list[int] = []

    class Watched(io.BytesIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            sizes.append(len(data))
            return super().write(data)

    stream = Watched()
    write_npy(stream, [records, records[:0]], 2_000_003)
    stream.seek(0)
    found = np.load(stream)
    assert found.dtype == PAIR
    assert (found["f0"] == 3).sum() == 2_000_000
    assert found[-3:].tolist() == [(5, 2)] * 3
    assert max(sizes) <= 16 << 20


def test_the_largest_weight_takes_little_memory() -> None:
    here = HandMade(fresh_folder(), {"00000": [Made(f"{i:032x}") for i in range(300)]})
    clause = Clause(source="raw", weight="2000000000")
    recipe = Recipe(name="heavy", about="", clauses=[clause], max_repeats=MAX_REPEATS)
    here.mix(recipe, npy=True)
    assert [row["weight"] for row in here.rows()] == [MAX_REPEATS] * 300
    found = np.load(here.store.path("subsets/out.npy"), mmap_mode="r")
    assert len(found) == 300 * MAX_REPEATS
    assert (np.diff(found["f1"]) >= 0).all()


def test_a_list_that_repeats_a_uid_more_often_than_rows_can_count_is_refused(
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "l.npy", np.ones(MAX_REPEATS + 1, PAIR))
    expected = rf"uid list .*l\.npy contains uid {1:016x}{1:016x} 10,001 times; .* at most 10,000"
    with pytest.raises(UserError, match=expected):
        UidList(str(tmp_path / "l.npy"))


@pytest.mark.parametrize(
    "header", ["(" * 150 + "\n", "{'descr': [", "{" * 9_000, "1" * 9_000, "[]"]
)
def test_a_list_with_a_broken_header_is_one_line(tmp_path: Path, header: str) -> None:
    data = header.encode().ljust(9_100)
    path = tmp_path / "l.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(data).to_bytes(2, "little") + data)
    with pytest.raises(UserError, match=r"^uid list .*l\.npy: .") as caught:
        UidList(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null"])
def test_a_list_that_is_no_regular_file_is_not_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^uid list {name}: not a regular file"):
        UidList(name)
    os.mkfifo(tmp_path / "l")
    with pytest.raises(UserError, match="not a regular file"):
        UidList(str(tmp_path / "l"))


def test_a_list_of_text_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "l.txt"
    path.write_text("\n".join(f"{number:032x}" for number in range(100)))
    whole = UidList(str(path)).digest
    for size in (1, 7, 33, 64):
        monkeypatch.setattr("capmix.mix.uids.TEXT_AT_ONCE", size)
        assert UidList(str(path)).digest == whole
    path.write_bytes(b"a" * 1000)
    with pytest.raises(UserError, match=r"uid list .*l\.txt: uid 'a+': expected 32 hex digits"):
        UidList(str(path))
