"""`--exclude`: the result is that of a pool without the excluded samples, and everything counts."""

import hashlib
import json
import logging
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parts import HandMade, Made, fresh_folder
from samples import image_bytes, tar_bytes

from capmix.cli.main import main
from capmix.errors import UserError
from capmix.mix import exclude_files
from capmix.mix.columns import Column
from capmix.mix.exclude_files import read_excluded
from capmix.mix.plan import locked_connection
from capmix.mix.recipe import load_recipe
from capmix.pipeline.config import MixSection
from capmix.storage.marker import Counts, Marker
from capmix.workspace import open_workspace


def made(count: int) -> list[Made]:
    draw = np.random.default_rng(count)
    found = []
    for i in range(count):
        raw, mini = (float(np.float32(one)) for one in draw.normal(0.25, 0.06, 2))
        sha256 = hashlib.sha256(str(i % 9).encode()).hexdigest()
        captions, scores = {"mini": [f"mini {i}"]}, {"mini": [mini]}
        found.append(
            Made(f"{i:032x}", f"raw {i}", raw, captions, scores, sha256=sha256, failed=i % 10 == 7)
        )
    return found


def work(samples: list[Made], size: int = 7) -> HandMade:
    starts = range(0, len(samples), size)
    shards = {f"{i:05d}": samples[s : s + size] for i, s in enumerate(starts)}
    return HandMade(fresh_folder(), shards)


def add_column(here: HandMade, folder: str, name: str, values: pa.Array) -> None:
    """Write a part beside the samples, in pool order, with one more column."""
    start = 0
    for shard in here.pool.shards:
        samples = here.store.read_table(f"samples/{shard.name}.parquet", ["uid", "key", "status"])
        part, count = f"{folder}/{shard.name}", len(samples)
        table = samples.append_column(name, values.slice(start, count))
        start += count
        with here.store.draft(part) as draft:
            draft.write_table(f"{part}.parquet", table)
            draft.commit(Marker({}, {}, count, Counts(ok=count)))


def rows(here: HandMade, name: str = "out") -> list[tuple[str, str, int]]:
    return [(row["uid"], row["source"], row["weight"]) for row in here.rows(name)]


def lines(path: Path, *entries: str) -> str:
    path.write_text("\n".join(entries))
    return str(path)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sets(st.integers(0, 29)),
    st.sampled_from(["raw-top", "raw-top+synthetic-above", "both-above", "soft-cap"]),
    st.integers(1, 30),
)
def test_the_result_is_that_of_a_pool_without_the_samples(
    out: set[int], name: str, size: int
) -> None:
    samples = made(30)
    parameters = {"batch": 4} if name == "soft-cap" else {"fraction": 0.3}
    here = work(samples, size)
    path = here.store.path("out.txt")
    listed = lines(Path(path), "uid", *(samples[i].uid for i in sorted(out)), "absent")
    rest = [one for i, one in enumerate(samples) if i not in out]
    if all(one.failed for one in rest):
        return
    summary = here.mix(load_recipe(name, parameters), exclude=[listed])
    plain = work(rest, 5)
    other = plain.mix(load_recipe(name, parameters))
    assert rows(here) == rows(plain)
    assert summary.thresholds == other.thresholds
    ok = sum(not samples[i].failed for i in out)
    assert summary.rows_in == 27 == other.rows_in + ok
    kept = len({uid for uid, _, _ in rows(here)})
    assert summary.rows_in == kept + sum(summary.dropped.values())
    assert summary.dropped.get("excluded by uid", 0) == ok
    assert summary.excluded == [
        {"kind": "uid", "samples": ok, "entries": len(out) + 1, "matched": ok,
         "malformed": 0, "example": ""}
    ]  # fmt: skip


def test_each_kind_excludes_its_samples(tmp_path: Path) -> None:
    samples = made(20)
    here = work(samples)
    urls = [f"https://example.com/a b/{i}.jpg" if i != 3 else None for i in range(20)]
    hashes = [f"{2**63 + i:016X}" for i in range(20)]
    add_column(here, "fields", "url", pa.array(urls))
    add_column(here, "columns/image", "phash", pa.array(hashes))
    here.columns |= {"field.url": Column("fields", "url"), "url": Column("fields", "url")}
    here.columns |= {"image_phash": Column("columns/image", "phash")}
    given = [
        lines(tmp_path / "uids.txt", "UID", samples[0].uid, "", samples[1].uid, samples[7].uid),
        f"url:{lines(tmp_path / 'urls.txt', str(urls[1]), str(urls[2]), 'http://absent')}",
        lines(tmp_path / "hashes.csv", "n,sha256", f"1,{(samples[4].sha256 or '').upper()}"),
        f"phash:{lines(tmp_path / 'p.txt', hashes[5].lower(), hashes[6])}",
    ]
    summary = here.mix(load_recipe("raw"), exclude=given)
    assert [int(uid, 16) for uid, _, _ in rows(here)] == [
        i for i in range(20) if i % 10 != 7 and i not in (0, 1, 2, 4, 13, 5, 6)
    ]
    assert summary.dropped == {
        "excluded by uid": 2, "excluded by url": 1, "excluded by sha256": 2, "excluded by phash": 2
    }  # fmt: skip
    assert summary.lines()[6:10] == [
        "  excluded by uid: 2 samples (entries: 3, without a sample: 1)",
        "  excluded by url: 1 sample (entries: 3, without a sample: 1)",
        "  excluded by sha256: 2 samples (entries: 1, without a sample: 0)",
        "  excluded by phash: 2 samples (entries: 2, without a sample: 0)",
    ]
    assert summary.rows_in == 18


@pytest.mark.parametrize("kind", [pa.uint64(), pa.int64()])
def test_perceptual_hashes_may_be_numbers(tmp_path: Path, kind: pa.DataType) -> None:
    numbers = np.array([2**63 + 5, 1, 77], np.uint64)
    values = pa.array(numbers).cast(kind, safe=False)
    pq.write_table(pa.table({"phash": values.slice(0, 2)}), tmp_path / "p.parquet")
    here = work(made(3))
    add_column(here, "columns/image", "phash", pa.array([f"{n:016x}" for n in numbers.tolist()]))
    here.columns |= {"image_phash": Column("columns/image", "phash")}
    here.mix(load_recipe("raw"), exclude=[str(tmp_path / "p.parquet")])
    assert len(rows(here)) == 1
    add_column(here, "columns/image", "phash", values)
    lines(tmp_path / "p.txt", "phash", f"{2**63 + 5:016x}")
    here.mix(load_recipe("raw"), exclude=[str(tmp_path / "p.txt")])
    assert len(rows(here)) == 2


def test_the_hash_of_the_image_before_it_was_resized_counts_too(tmp_path: Path) -> None:
    samples = made(5)
    here = work(samples)
    original = [hashlib.sha256(f"original {i}".encode()).hexdigest() for i in range(5)]
    add_column(here, "fields", "sha256", pa.array(original))
    here.columns |= {"field.sha256": Column("fields", "sha256")}
    listed = lines(tmp_path / "x.txt", "sha256", original[1], str(samples[2].sha256))
    here.mix(load_recipe("raw"), exclude=[listed])
    assert [int(uid, 16) for uid, _, _ in rows(here)] == [0, 3, 4]


def test_a_changed_file_is_a_different_subset_and_its_order_does_not_matter(tmp_path: Path) -> None:
    here = work(made(20))
    path = tmp_path / "uids.txt"
    marker = Path(here.store.path(".markers/subsets/out.json"))
    stamps = []
    uids = [f"{i:032x}" for i in range(4)]
    for listed in (uids[:2], uids[1::-1] + uids[:1], uids[:3], []):
        given = [lines(path, "uid", *listed)] if listed else []
        here.mix(load_recipe("raw"), exclude=given)
        stamps.append(marker.stat().st_mtime_ns)
        assert len(rows(here)) == 18 - len(set(listed))
    assert stamps[0] == stamps[1] < stamps[2] < stamps[3]


def test_malformed_lines_are_counted_and_the_first_one_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = work(made(5))
    sha256 = made(5)[0].sha256
    path = tmp_path / "hashes.txt"
    path.write_bytes(f"sha256\r\n{sha256}\r\n\r\nabc\r\n".encode() + b"\xff\xfe\n\x1b[31m")
    with caplog.at_level(logging.WARNING):
        summary = here.mix(load_recipe("raw"), exclude=[str(path)])
    assert len(rows(here)) == 4
    assert "3 lines with no valid sha256; the first is hashes.txt, line 4: 'abc'" in caplog.text
    assert summary.excluded[0]["malformed"] == 3
    assert "without a sample: 0, malformed lines: 3)" in "\n".join(summary.lines())
    for name in ("out", "other"):  # also if the subset is up to date
        with pytest.raises(UserError, match=r"3 lines with no valid sha256; .*\(--strict\)"):
            here.mix(load_recipe("raw"), name, exclude=[str(path)], strict=True)


@pytest.mark.parametrize(
    ("name", "text", "entries", "malformed"),
    [
        ("a.txt", "uid\na\n b \n\nc\n", 3, ""),
        ("a.csv", 'x,URL\n1,"http://a/,b"\n2,b\n3\n\n', 2, "a.csv, line 4: '\ufffd'"),
        ("a.tsv", "url\tx\nhttp://a\t1\n", 1, ""),
        ("a.txt", "phash\n0123456789abcdef\n0123456789ABCDEF\n123\n", 1, "a.txt, line 4: '123'"),
        ("a.txt", "\ufeffurl\nftp://x\nx.com/a\x07\n", 1, "a.txt, line 3: 'x.com/a\\x07'"),
    ],
)
def test_each_form_of_file(
    tmp_path: Path, name: str, text: str, entries: int, malformed: str
) -> None:
    path = tmp_path / name
    path.write_text(text, "utf-8")
    (found,) = read_excluded([str(path)], locked_connection()).values()
    assert (len(found.pairs), found.example) == (entries, malformed)


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("a.txt", b"x\ny\n", "", r"what does it list\? Write uid:.*a.txt"),
        ("a.csv", b"a,b\n1,2\n", "", "no column uid, url, sha256, phash; columns: a, b"),
        ("a.csv", b"uid,url\n1,2\n", "", "columns uid, url: choose one, for example uid:"),
        ("a.csv", b"a,b\n1,2\n", "url:", "no column url; columns: a, b"),
        ("a.csv", b"", "", "no column .*columns: none"),
        ("a.txt", b"sha256\nx\n", "", "no sha256 in it; the first malformed line is a.txt, line 2"),
        ("a.txt", b"uid\n", "", "no uid in it"),
        ("a.txt", b"uid\nx\n", "url:", "its first line is uid; expected url"),
        ("a.txt", b"uid\n" + b"x" * 70_000, "", "line 2 has more than 65,536 characters"),
        ("a.parquet", b"PAR1nonsense", "", "a.parquet: "),
    ],
)
def test_a_faulty_file_is_one_clear_line(
    tmp_path: Path, name: str, content: bytes, kind: str, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_excluded([f"{kind}{tmp_path / name}"], locked_connection())
    assert str(caught.value).startswith("--exclude ")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "absent.txt", tmp_path, tmp_path / "fifo"):
        with pytest.raises(UserError, match=f"--exclude {path}: "):
            read_excluded([f"uid:{path}"], locked_connection())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("phash\n0123456789abcdef", "no perceptual hashes; run `capmix annotate --method image`"),
        ("url\nhttp://a", "the pool has no field url"),
    ],
)
def test_a_kind_without_column_names_what_to_do(tmp_path: Path, entry: str, message: str) -> None:
    here = work(made(3))
    with pytest.raises(UserError, match=message):
        here.mix(load_recipe("raw"), exclude=[lines(tmp_path / "x.txt", entry)])


def test_excluding_everything_is_reported(tmp_path: Path) -> None:
    samples = made(5)
    here = work(samples)
    listed = lines(tmp_path / "x.txt", "uid", *(one.uid for one in samples))
    with pytest.raises(UserError, match="--exclude: all 5 samples are excluded; none is left"):
        here.mix(load_recipe("raw-top"), exclude=[listed])


@pytest.mark.parametrize("strict", [False, True])
def test_a_fraction_is_of_the_samples_that_are_left(tmp_path: Path, strict: bool) -> None:
    samples = made(20)  # 2 of them failed
    samples[4:] = [replace(one, raw_score=None) for one in samples[4:]]
    here = work(samples)
    listed = lines(tmp_path / "x.txt", "uid", *(samples[i].uid for i in (0, 1, 7)))
    words = "the fraction requests 8 of 16 samples, but 2 have a value"

    def mix() -> Any:
        recipe = load_recipe("raw-top", {"fraction": 0.5})
        return here.mix(recipe, exclude=[listed], strict=strict)

    if strict:
        with pytest.raises(UserError, match=words):
            mix()
    else:
        assert any(words in line for line in mix().lines())


@pytest.mark.parametrize("name", ["x.txt", "x.csv"])
def test_long_lines_are_read_in_small_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    lengths = [70, 10, 10, 10, 10, 80, 10, 10, 3]
    path = lines(tmp_path / name, "url", *("x" * one for one in lengths))
    monkeypatch.setattr(exclude_files, "TEXT_AT_ONCE", 100)
    _, rows = exclude_files._open(path, None)
    found = [(first, [len(one.strip()) for one in batch.to_pylist()]) for first, batch in rows]
    assert found == [(2, [70, 10, 10, 10]), (6, [10, 80, 10]), (9, [10, 3])]


def test_uids_with_the_same_upper_half_of_their_digest_are_told_apart() -> None:
    from capmix.mix.uids import PAIR, SortedPairs

    pairs = np.array([(1, 1), (1, 3), (1, 5), (2, 0)], PAIR)
    asked: Any = np.array([(1, 3), (1, 4), (1, 5), (2, 0), (0, 0), (3, 0)], PAIR)
    assert SortedPairs(pairs).find(asked).tolist() == [1, -1, 2, 3, -1, -1]


def test_sorting_the_entries_needs_at_most_three_times_their_size() -> None:
    from capmix.mix.uids import PAIR

    count, batches = 1 << 18, 8
    upper = np.random.default_rng(0).permutation(count).astype(np.uint64)
    tracemalloc.start()
    pairs = np.zeros(count, PAIR)
    pairs["f0"] = upper
    collected = exclude_files._Collected("uid", [one.copy() for one in np.split(pairs, batches)])
    del pairs
    tracemalloc.reset_peak()
    assert len(collected.list().pairs) == count
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * PAIR.itemsize * count


def test_the_command_the_pipeline_and_python_take_the_same_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = []
    for number in range(4):
        about = {"uid": f"{number:032x}", "url": f"http://a/{number}"}
        members += [(f"{number:09d}.jpg", image_bytes(number))]
        members += [(f"{number:09d}.json", json.dumps(about).encode())]
        members += [(f"{number:09d}.txt", b"text")]
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/00000.tar").write_bytes(tar_bytes(members))
    pool, work = str(tmp_path / "pool"), str(tmp_path / "work")
    uid, url = lines(tmp_path / "u.txt", "0" * 32), lines(tmp_path / "l.csv", "URL", "http://a/2")
    command = ["mix", pool, "--work", work, "--recipe", "raw"]
    assert main([*command, "--exclude", f"uid:{uid}", "--exclude", url]) == 0
    shown = capsys.readouterr().out
    assert "raw: 2 rows kept of 4 samples" in shown
    assert "1  left out: excluded by url" in shown
    opened = open_workspace(work=work)
    marker = opened.store.fingerprint("subsets/raw")
    again = opened.mix("raw", exclude=[f"uid:{uid}", url])
    assert opened.store.fingerprint("subsets/raw") == marker
    assert again.table()["uid"].to_pylist() == [f"{1:032x}", f"{3:032x}"]
    assert len(opened.mix("raw", exclude=url)) == 3
    section = MixSection(recipes=["raw", {"recipe": "raw-top", "exclude": [uid]}], exclude=url)
    assert [one.exclude for _, _, one in section.entries()] == [[url], [uid]]
