"""Concept balancing equals a plain loop over texts and entries."""

import hashlib
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import sample_members, tar_bytes

from capmix.annotate import ngrams
from capmix.annotate.concept_matches import Matcher
from capmix.annotate.concepts import (
    draws,
    entry_keys,
    limit_of_tail,
    probabilities,
    text_keys,
)
from capmix.annotate.entries import entry_form, read_entries
from capmix.annotate.ngrams import wordnet_lemmas
from capmix.cli.main import main
from capmix.errors import UserError
from capmix.workspace import Workspace, open_workspace

ENTRIES = ["red", "car", "red car", "car park", "a", "vélo", "zebra", "C++"]
TEXTS = [
    "a red car park", "a red car", "red", "a car", "car car car", "the vélo", "infrared", "Red car",
    "C++", "a", "", "red  car", "a\tcar", "a b a", "nothing here", "a zebra", "a C++ car",
]  # fmt: skip
WORDS = st.lists(st.sampled_from(["a", "b", "ab", "é", "b a", "A", "-"]), max_size=8).map(" ".join)


def plain_matches(text: str, entries: list[str]) -> list[int]:
    return [n for n, entry in enumerate(entries) if f" {text} ".find(f" {entry} ") >= 0]


def plain_draw(seed: int, uid: str, source: str, entry: str) -> float:
    """SplitMix64 over Python's integers."""
    most = 2**64 - 1

    def mixed(bits: int) -> int:
        bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 & most
        bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB & most
        return bits ^ (bits >> 31)

    def key(name: str) -> int:
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")

    first = mixed(key(f"{seed}/{uid}/{source}/0"))
    return (mixed(first + key(entry) * 0x9E3779B97F4A7C15 & most) >> 11) / 2**53


@settings(max_examples=200, deadline=None)
@given(WORDS, st.lists(WORDS.map(str.strip).filter(bool), min_size=1, max_size=9, unique=True))
def test_an_entry_matches_where_the_text_has_it_between_spaces(
    text: str, entries: list[str]
) -> None:
    assert Matcher(entries, "exact").find(text) == plain_matches(text, entries)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=4), min_size=1, unique=True))
def test_any_characters_can_be_matched(text: str, entries: list[str]) -> None:
    assert Matcher(entries, "exact").find(text) == plain_matches(text, entries)


def test_words_are_matched_without_case_and_punctuation() -> None:
    assert entry_form(" A red-haired Girl, smiling. ", "words") == "a red-haired girl smiling"
    matcher = Matcher(["a red-haired girl", "smiling"], "words")
    assert matcher.find("A red-haired Girl, SMILING!") == [0, 1]


@pytest.mark.parametrize(
    ("counts", "tail", "expected"),
    [
        ([1, 1, 2, 6, 10], 0.2, 2),  # shares 0.05, 0.1, 0.2: reached by the third
        ([10, 1, 6, 2, 1], 0.21, 6),
        ([10, 1, 6, 2, 1], 0.01, 1),
        ([10, 1, 6, 2, 1], 1.0, 10),
        ([0, 0, 5], 0.06, 5),
        ([0, 0], 0.06, 1),
        ([1] * 94 + [6], 0.94, 1),
        ([1] * 94 + [6], 0.941, 6),
    ],
)
def test_the_limit_is_the_count_that_reaches_the_tail(
    counts: list[int], tail: float, expected: int
) -> None:
    assert limit_of_tail(np.array(counts), tail) == expected


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.floats(0.001, 1))
def test_the_limit_equals_a_plain_sum(counts: list[int], tail: float) -> None:
    rising, total = sorted(one for one in counts if one), 0
    expected = rising[-1] if rising else 1
    for one in rising:
        total += one
        if total >= tail * sum(rising):
            expected = one
            break
    assert limit_of_tail(np.array(counts), tail) == expected


def test_frequent_entries_are_kept_with_the_limit_over_their_count() -> None:
    assert probabilities(np.array([0, 5, 20, 80]), 20).tolist() == [1, 1, 1, 0.25]


def test_draws_are_uniform_and_independent_for_each_text_and_entry() -> None:
    texts = text_keys(0, [str(n) for n in range(400)], "raw")
    entries = entry_keys([f"entry {n}" for n in range(300)])
    found = draws(texts[:, None], entries[None, :])
    counts = np.histogram(found, 20, (0, 1))[0]
    expected = found.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi-square, 19 degrees, 0.1%
    for pairs in (found, found.T):  # neither two texts nor two entries share their draws
        products = np.corrcoef(pairs)[np.triu_indices(len(pairs), 1)]
        assert abs(products.mean()) < 0.01
        assert np.abs(products).max() < 6 / math.sqrt(pairs.shape[1])
    assert found[3, 7] == plain_draw(0, "3", "raw", "entry 7")


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    (tmp_path / "pool").mkdir()
    for shard in range(3):
        members = []
        for row, text in enumerate(TEXTS):
            number = 100 * shard + row
            members += sample_members(f"{shard:05d}{row:04d}", number, text if row else None)
        members += [("bad.json", b'{"uid": "x"}'), ("bad.txt", b"x")]
        (tmp_path / f"pool/{shard:05d}.tar").write_bytes(tar_bytes(members))
    (tmp_path / "entries.txt").write_text("\n".join([*ENTRIES, "", " car "]), "utf-8")
    return open_workspace(str(tmp_path / "pool"), str(tmp_path / "work"), max_failures=1.0)


def annotate(work: Workspace, **options: object) -> None:
    entries = str(Path(work.store.root).parent / "entries.txt")
    work.annotate(method="concepts", entries=entries, **{"seed": 3, **options})


def rows(work: Workspace, name: str = "concepts") -> list[dict[str, object]]:
    paths = sorted(Path(work.store.root).glob(f"columns/{name}/*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize("option", [{"limit": 4}, {"tail": 0.3}])
def test_the_columns_equal_a_plain_loop(work: Workspace, option: dict[str, float]) -> None:
    annotate(work, **option)
    paths = sorted(Path(work.store.root).glob("samples/*.parquet"))
    samples = [row for path in paths for row in pq.read_table(path).to_pylist()]
    texts = {r["uid"]: r["text"] for r in samples if (r["text"] or "").strip()}
    found = {uid: plain_matches(text, ENTRIES) for uid, text in texts.items()}
    counts = [sum(n in one for one in found.values()) for n in range(len(ENTRIES))]
    limit, total = option.get("limit", 0), 0
    for count in sorted(counts):
        total += count
        if not limit and count and total >= option["tail"] * sum(counts):
            limit = count
    chances = [limit / max(count, limit) for count in counts]
    assert 1 in chances
    assert min(chances) < 1
    table = pq.read_table(f"{work.store.root}/metadata/concepts/counts.parquet").to_pydict()
    assert table == {"entry": ENTRIES, "count": counts, "probability": chances}
    written = rows(work)
    assert len(written) == len(samples) == 3 * (len(TEXTS) + 1)
    for row, sample in zip(written, samples, strict=True):
        assert row["uid"] == sample["uid"]
        if sample["uid"] not in texts:
            assert row["status"] == ("failed" if sample["status"] == "failed" else "dropped")
            assert (row["matches"], row["probability"], row["kept"]) == (None, None, None)
            continue
        here = found[sample["uid"]]
        drawn = [plain_draw(3, sample["uid"], "raw", ENTRIES[n]) for n in here]
        assert row["matches"] == len(here)
        assert row["kept"] == any(d < chances[n] for d, n in zip(drawn, here, strict=True))
        stays = 1 - math.prod(1 - chances[n] for n in here)
        assert row["probability"] == pytest.approx(stays, abs=1e-6)
        assert math.copysign(1, row["probability"]) == 1  # -0.0 would be shown for no entry
    assert {row["kept"] for row in written} == {True, False, None}


def test_the_recipe_keeps_the_balanced_texts(work: Workspace) -> None:
    annotate(work, limit=3)
    kept = {row["uid"] for row in rows(work) if row["kept"]}
    assert set(work.mix("metaclip").table()["uid"].to_pylist()) == kept
    without = [row["uid"] for row in rows(work) if row["matches"] == 0]
    assert without
    assert kept.isdisjoint(without)
    table = work.mix("raw", where="concepts_probability = 1", out="rare").table()
    assert 0 < len(table) < 3 * len(TEXTS)


def test_captions_are_balanced_by_their_own_counts(work: Workspace, tmp_path: Path) -> None:
    samples = [row for row in rows_of_index(work) if row["status"] == "ok"]
    lines = [f"{row['uid']},{'a red car' if n % 2 else 'zebra'}" for n, row in enumerate(samples)]
    (tmp_path / "captions.csv").write_text("uid,text\n" + "\n".join(lines))
    work.import_captions(tmp_path / "captions.csv", source="blip2")
    annotate(work, limit=2)
    annotate(work, limit=5, source="blip2", name="concepts_blip2")
    found = rows(work, "concepts_blip2")
    assert {row["matches"] for row in found if row["status"] == "ok"} == {1, 4}
    chosen = {"synthetic": "blip2", "synthetic_concepts": "concepts_blip2"}
    table = work.mix("metaclip+synthetic", parameters=chosen).table().to_pylist()
    of_raw = {row["uid"] for row in rows(work) if row["kept"]}
    of_captions = {row["uid"] for row in found if row["kept"]} - of_raw
    assert {row["uid"] for row in table if row["source"] == "raw"} == of_raw
    assert {row["uid"] for row in table if row["source"] == "blip2"} == of_captions
    assert of_captions
    work.clean(sources="blip2", yes=True)
    assert not work.store.parts("columns/concepts_blip2")
    assert not work.store.parts("matches/concepts_blip2")
    assert not (Path(work.store.root) / "metadata/concepts_blip2").exists()
    assert len(work.store.parts("columns/concepts")) == 3


def rows_of_index(work: Workspace) -> list[dict[str, object]]:
    work.index()
    paths = sorted(Path(work.store.root).glob("samples/*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def test_an_interrupted_run_resumes_with_the_same_columns(work: Workspace) -> None:
    annotate(work, limit=3)
    root = Path(work.store.root)
    expected = {path: path.read_bytes() for path in root.glob("columns/concepts/*.parquet")}
    kept = root / "matches/concepts/00000.parquet"
    before = kept.stat().st_mtime_ns
    for part in ("matches/concepts/00001", "columns/concepts/00001", "columns/concepts/00002"):
        (root / f"{part}.parquet").unlink()
        work.store.remove_marker(part)
    annotate(work, limit=3, workers=2)
    assert {path: path.read_bytes() for path in expected} == expected
    assert kept.stat().st_mtime_ns == before
    written = {path: path.stat().st_mtime_ns for path in expected}
    annotate(work, limit=3)
    assert {path: path.stat().st_mtime_ns for path in expected} == written


def test_another_limit_matches_nothing_again(work: Workspace) -> None:
    annotate(work, limit=3)
    matches = sorted(Path(work.store.root).glob("matches/concepts/*.parquet"))
    before, columns = [path.stat().st_mtime_ns for path in matches], rows(work)
    annotate(work, limit=1)
    assert [path.stat().st_mtime_ns for path in matches] == before
    assert rows(work) != columns
    annotate(work, limit=1, seed=4)
    (Path(work.store.root).parent / "entries.txt").write_text("zebra")
    annotate(work, limit=1)
    assert {row["matches"] for row in rows(work)} == {0, 1, None}
    assert work.verify().damaged == []


def test_more_entries_do_not_change_the_draws_of_the_others() -> None:
    assert entry_keys(["a", "b"])[1] == entry_keys(["c", "b", "a"])[1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no entries; expected one per line"),
        (b"red\n\xff\xfe", "line 2 is not UTF-8"),
        (b"a\n" + b"x" * 1_001, "line 2 has more than 1,000 bytes"),
    ],
)
def test_a_bad_list_is_a_one_line_error(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "entries.txt").write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_entries(str(tmp_path / "entries.txt"))


def test_mistakes_are_one_line_errors(
    work: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = [str(tmp_path / "pool"), "--work", str(tmp_path / "work"), "--max-failures", "1"]
    command = ["annotate", *place, "--method", "concepts"]
    assert main(command) == 2
    assert "pass --entries, --wordnet or --frequent" in capsys.readouterr().err
    assert main([*command, "--entries", str(tmp_path / "no.txt")]) == 2
    assert "no.txt: No such file" in capsys.readouterr().err
    (tmp_path / "none.txt").write_text("unicorn")
    assert main([*command, "--entries", str(tmp_path / "none.txt")]) == 2
    assert "no text of source 'raw' contains an entry" in capsys.readouterr().err
    assert main([*command, "--frequent", "1000"]) == 2
    assert "--frequent 1000: no word occurs so often" in capsys.readouterr().err
    assert main([*command, "--entries", str(tmp_path / "entries.txt"), "--source", "blip2"]) == 2
    assert "blip2" in capsys.readouterr().err


def test_frequent_words_and_pairs_equal_a_plain_count(work: Workspace) -> None:
    samples = [row for row in rows_of_index(work) if row["status"] == "ok" and row["text"]]
    split = [str(row["text"]).split() for row in samples]
    words = Counter(word for text in split for word in text)
    pairs = Counter((a, b) for text in split for a, b in pairwise(text))
    total = words.total()
    expected = {word for word, count in words.items() if count >= 6}
    expected |= {
        f"{a} {b}"
        for (a, b), count in pairs.items()
        if count >= 6 and math.log2(count * total / (words[a] * words[b])) >= 1
    }
    assert {"red car", "car"} < expected
    assert "a red" in {" ".join(pair) for pair in pairs}
    work.annotate(method="concepts", frequent=6, pmi=1.0, limit=2)
    part = Path(work.store.root) / "metadata/concepts/entries.parquet"
    assert set(pq.read_table(part)["entry"].to_pylist()) == expected
    before = part.stat().st_mtime_ns
    work.annotate(method="concepts", frequent=6, pmi=1.0, limit=3)
    assert part.stat().st_mtime_ns == before
    work.annotate(method="concepts", frequent=100_000, wordnet=wordnet(part.parents[3]), limit=3)
    assert pq.read_table(part)["entry"].to_pylist() == ["car", "car park", "red"]


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MOST_ENTRIES", 3, "--frequent 1: more than 3 words; use a larger number"),
        ("MEMORY", "1KB", "--frequent 1: .*[Mm]emory"),
    ],
)
def test_too_many_words_are_a_one_line_error(
    work: Workspace, monkeypatch: pytest.MonkeyPatch, limit: str, value: object, message: str
) -> None:
    monkeypatch.setattr(ngrams, limit, value)
    with pytest.raises(UserError, match=message):
        work.annotate(method="concepts", frequent=1)


def wordnet(folder: Path) -> str:
    """Write index files in WordNet's form."""
    licence = "  1 This software and database is being provided to you\n"
    nouns = "car_park n 1 1 @ 1 0 03379051  \ncar n 5 7 @ 5 2 02958343 02959942  \n"
    (folder / "index.noun").write_text(licence + nouns)
    (folder / "index.adj").write_text(licence + "red a 3 2 & ^ 3 1 00381097  \ncar a 1 1 & 1 0 1\n")
    return str(folder)


def test_lemmas_come_from_the_index_files_of_wordnet(tmp_path: Path) -> None:
    assert wordnet_lemmas(wordnet(tmp_path)) == ["car", "car park", "red"]
    with pytest.raises(UserError, match="expected a folder with index.noun"):
        wordnet_lemmas(str(tmp_path / "none"))
