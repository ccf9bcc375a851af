"""Texts become texts: parts, missing inputs, conservation, resume, and only what has changed."""

import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from echoing_rewriter import KILLED_MODEL, MODEL, EchoingRewriter, KilledError, KilledRewriter
from samples import sample_members, tar_bytes, write_pool

from capmix.caption.sampling import caption_key
from capmix.engine.batches import SampleError
from capmix.errors import UserError
from capmix.rewrite.rewriter import TextRequest
from capmix.rewrite.settings import RewriteSettings
from capmix.storage.store import Store
from capmix.workspace import Workspace, open_workspace

PROMPT = "Merge {raw} and {seen}"


@pytest.fixture(autouse=True)
def _fresh() -> None:
    EchoingRewriter.asked.clear()
    EchoingRewriter.batches.clear()
    KilledRewriter.left = 10**9


def opened(folder: Path, shards: int = 2, samples: int = 5) -> Workspace:
    """A pool whose source `seen` has captions of all but the samples that are divisible by 3."""
    pool = write_pool(folder / "p", shards, samples)
    work = open_workspace(str(pool), str(folder / "w"))
    uids = [shard * 100 + row for shard in range(shards) for row in range(samples)]
    seen = [uid for uid in uids if uid % 3]
    add_captions(work, folder / "seen.parquet", "seen", {uid: f"a view of {uid}" for uid in seen})
    return work


def add_captions(work: Workspace, file: Path, source: str, texts: dict[int, str]) -> None:
    uids = [f"{uid:032x}" for uid in texts]
    pq.write_table(pa.table({"uid": uids, "text": list(texts.values())}), file)
    work.import_captions([str(file)], source=source, force=True)


def rows(store: Store, source: str, shard: str = "00000") -> list[dict[str, Any]]:
    return store.read_table(f"captions/{source}/{shard}.parquet").to_pylist()


def extra(store: Store, source: str, shard: str = "00000") -> dict[str, Any]:
    marker = store.read_marker(f"captions/{source}/{shard}")
    assert marker is not None
    return marker.extra


def test_each_text_depends_on_its_input_and_its_name(tmp_path: Path) -> None:
    work = opened(tmp_path)
    counts = work.rewrite("fused", model=MODEL, prompt=PROMPT, captions_per_image=2, seed=7,
                          from_="raw,seen")  # fmt: skip
    expected = []
    for number in (1, 2, 4):
        uid = f"{number:032x}"
        for k in range(2):
            key = caption_key(7, uid, "fused", k) % 1000
            expected.append((uid, k, f"Merge picture {number} and a view of {number} #{key}"))
    found = rows(work.store, "fused")
    assert [(row["uid"], row["k"], row["text"]) for row in found] == expected
    assert counts.ok + counts.dropped.total() == 10
    assert {row["status"] for row in found} == {"ok"}
    assert {row["image_hash"] for row in found} == {None}


@pytest.mark.parametrize("missing", ["skip", "pass", "drop"])
def test_a_missing_text_is_skipped_copied_or_dropped(tmp_path: Path, missing: Any) -> None:
    work = opened(tmp_path)
    counts = work.rewrite("fused", model=MODEL, prompt=PROMPT, from_="raw,seen", missing=missing)
    of_sample = {row["uid"][-1]: row for row in rows(work.store, "fused")}
    if missing == "skip":
        assert sorted(of_sample) == ["1", "2", "4"]
        assert extra(work.store, "fused") == {"missing_skipped": 2}
        assert counts.dropped == Counter(missing_text=3)  # 0, 3 and 102
    if missing == "pass":
        assert (of_sample["3"]["text"], of_sample["3"]["finish"]) == ("picture 3", "copied")
        assert extra(work.store, "fused") == {"missing_copied": 2}
        assert counts.ok == 10
    if missing == "drop":
        row = of_sample["3"]
        assert (row["status"], row["reason"]) == ("dropped", "missing_text")
        assert row["detail"] == "no text of seen"
    assert counts.total == 10


def test_an_optional_part_is_left_out_with_its_missing_text(tmp_path: Path) -> None:
    work = opened(tmp_path)
    work.rewrite("fused", model=MODEL, from_="raw,seen", prompt="Fix {raw}[[ seen as {seen}]].")
    texts = [row["text"].partition(" #")[0] for row in rows(work.store, "fused")]
    assert texts[0] == "Fix picture 0."
    assert texts[1] == "Fix picture 1 seen as a view of 1."


def test_each_prompt_writes_a_text(tmp_path: Path) -> None:
    work = opened(tmp_path)
    work.rewrite("both", model=MODEL, prompt=["One {raw}", "Two {raw}"])
    texts = [row["text"].partition(" #")[0] for row in rows(work.store, "both")]
    assert texts[:4] == ["One picture 0", "Two picture 0", "One picture 1", "Two picture 1"]


def test_each_prompt_writes_the_same_number_of_texts(tmp_path: Path) -> None:
    work = opened(tmp_path)
    prompts = ["One {raw}", "Two {raw}"]
    work.rewrite("four", model=MODEL, prompt=prompts, captions_per_image=2)
    found = rows(work.store, "four")[:4]
    assert [row["text"].split()[0] for row in found] == ["One", "One", "Two", "Two"]
    assert [row["k"] for row in found] == [0, 1, 2, 3]


def test_text_k_reads_caption_k_modulo_their_number(tmp_path: Path) -> None:
    work = opened(tmp_path)
    work.rewrite("two", model=MODEL, prompt=["One {raw}", "Two {raw}"])
    work.rewrite("five", model=MODEL, from_="two", captions_per_image=5)
    texts = [row["text"].split()[0] for row in rows(work.store, "five")[:5]]
    assert texts == ["One", "Two", "One", "Two", "One"]


def test_a_bad_text_fails_alone(tmp_path: Path) -> None:
    work = opened(tmp_path).using(max_failures=1.0)
    texts = {0: "fine", 1: "poison", 2: "refused", 3: "silent", 4: "fine"}
    add_captions(work, tmp_path / "odd.parquet", "odd", texts)
    counts = work.rewrite("new", model=MODEL, from_="odd")
    assert counts.failed == Counter(model_error=1, refused=1)
    assert counts.dropped == Counter(empty_caption=1, missing_text=5)
    assert (counts.ok, counts.total) == (2, 10)
    reasons = [row["reason"] for row in rows(work.store, "new")]
    assert reasons == [None, "model_error", "refused", "empty_caption", None]
    assert extra(work.store, "new") == {"with_empty_texts": 1}


def test_failed_samples_are_retried_alone(tmp_path: Path) -> None:
    work = opened(tmp_path).using(max_failures=1.0)
    texts = {0: "silent", 1: "poison", 2: "fine", 3: "fine", 4: "fine"}
    add_captions(work, tmp_path / "odd.parquet", "odd", texts)
    work.rewrite("new", model=MODEL, from_="odd")
    before = rows(work.store, "new"), extra(work.store, "new")
    EchoingRewriter.asked.clear()
    work.rewrite("new", model=MODEL, from_="odd", retry_failed=True)
    assert [one.texts for one in EchoingRewriter.asked] == [("poison",)]
    assert (rows(work.store, "new"), extra(work.store, "new")) == before


def test_a_shard_with_changed_input_is_rewritten_and_no_other(tmp_path: Path) -> None:
    work = opened(tmp_path)
    work.rewrite("new", model=MODEL, from_="seen")
    EchoingRewriter.asked.clear()
    work.rewrite("new", model=MODEL, from_="seen")
    assert EchoingRewriter.asked == []
    changed = {uid: f"a view of {uid}" for uid in (1, 2, 4)} | {101: "new"}
    add_captions(work, tmp_path / "seen2.parquet", "seen", changed)
    assert work.status()["captions/new"].stale == 1
    work.rewrite("new", model=MODEL, from_="seen")
    assert [one.texts for one in EchoingRewriter.asked] == [("new",)]


def test_other_settings_are_refused_without_force(tmp_path: Path) -> None:
    work = opened(tmp_path)
    work.rewrite("new", model=MODEL, prompt="A {raw}")
    with pytest.raises(UserError, match="prompt"):
        work.rewrite("new", model=MODEL, prompt="B {raw}")
    work.rewrite("new", model=MODEL, prompt="B {raw}", force=True)
    assert rows(work.store, "new")[0]["text"].startswith("B picture")


def test_a_killed_run_resumes_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, whole = opened(tmp_path / "a", 1, 20), opened(tmp_path / "b", 1, 20)
    options: dict[str, Any] = {"from_": "seen", "captions_per_image": 2}
    monkeypatch.setattr("capmix.rewrite.stage.WINDOW", 1)
    KilledRewriter.left = 2
    with pytest.raises(KilledError):
        work.rewrite("new", model=KILLED_MODEL, **options)
    KilledRewriter.left = 10**9
    EchoingRewriter.batches.clear()
    work.rewrite("new", model=KILLED_MODEL, **options)
    assert sum(map(len, EchoingRewriter.batches)) == 13 - 8  # of 13 samples, 8 were done
    whole.rewrite("new", model=KILLED_MODEL, **options)
    parts = [Path(one.store.path("captions/new/00000.parquet")) for one in (work, whole)]
    assert parts[0].read_bytes() == parts[1].read_bytes()
    assert extra(work.store, "new") == extra(whole.store, "new")


def test_texts_of_similar_length_share_a_batch_and_rows_keep_their_order(tmp_path: Path) -> None:
    work = opened(tmp_path, 1, 8)
    lengths = [5, 90, 7, 95, 6, 92, 8, 91]
    texts = dict(enumerate("x" * length for length in lengths))
    add_captions(work, tmp_path / "long.parquet", "long", texts)
    work.rewrite("new", model=MODEL, from_="long")
    assert EchoingRewriter.batches == [[95, 92, 91, 90], [8, 7, 6, 5]]
    found = [row["text"].partition(" #")[0] for row in rows(work.store, "new")]
    assert found == list(texts.values())


def test_broken_samples_of_the_pool_stay_failed(tmp_path: Path) -> None:
    pool = tmp_path / "p"
    pool.mkdir()
    members = [*sample_members("a", 1, "one"), ("b.json", b'{"uid": "x"}'), ("b.txt", b"two")]
    (pool / "00000.tar").write_bytes(tar_bytes(members))
    work = open_workspace(str(pool), str(tmp_path / "w"), max_failures=1.0)
    counts = work.rewrite("new", model=MODEL)
    assert (counts.ok, counts.failed) == (1, Counter(no_image=1))


def test_selected_samples_are_rewritten_and_later_the_others(tmp_path: Path) -> None:
    work = opened(tmp_path, 1, 6)
    counts = work.rewrite("new", model=MODEL, where="raw_text >= 'picture 4'")
    assert (counts.ok, counts.dropped) == (2, Counter(not_selected=4))
    assert work.rewrite("new", model=MODEL).ok == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"from_": "raw,seen"}, "several sources need a --prompt"),
        ({"prompt": "{field:tags}"}, "write the field to a source first"),
        ({"prompt": "{blip2}"}, "is not among the input sources raw"),
        ({"from_": "raw,seen", "prompt": "{raw}"}, "no --prompt has the field {seen}"),
        ({"prompt": "{raw"}, "--prompt, character 1"),
        ({"from_": "blip2"}, "no captions of source 'blip2'"),
        ({"from_": "new"}, "no captions of source 'new'"),
        ({"from_": ""}, "--from"),
        ({"model": "nosuch.module:Class"}, "nosuch"),
    ],
)
def test_invalid_options_are_errors_before_any_work(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    work = opened(tmp_path, 1, 2)
    with pytest.raises(UserError, match=message.replace("{", r"\{")):
        work.rewrite("new", **{"model": MODEL} | options)
    assert work.store.parts("captions/new") == []


def test_a_source_is_not_rewritten_into_itself(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--source seen is also in --from"):
        opened(tmp_path, 1, 2).rewrite("seen", model=MODEL, from_="seen")


def test_no_image_of_the_pool_is_read(tmp_path: Path) -> None:
    work = opened(tmp_path)
    work.index()
    tar = tmp_path / "p/00000.tar"
    about = tar.stat()
    tar.write_bytes(b"\0" * about.st_size)
    import os

    os.utime(tar, ns=(about.st_atime_ns, about.st_mtime_ns))  # the same shard, as far as is known
    again = open_workspace(str(tmp_path / "p"), str(tmp_path / "w"))
    assert again.rewrite("new", model=MODEL).ok == 10


def test_worker_processes_write_the_same_bytes(tmp_path: Path) -> None:
    one, two = opened(tmp_path / "a"), opened(tmp_path / "b")
    options: dict[str, Any] = {"model": "split", "captions_per_image": 2}
    one.rewrite("new", **options)
    two.rewrite("new", workers=2, **options)
    for shard in ("00000", "00001"):
        parts = [Path(w.store.path(f"captions/new/{shard}.parquet")) for w in (one, two)]
        assert parts[0].read_bytes() == parts[1].read_bytes()


def test_the_number_of_texts_follows_the_prompts() -> None:
    assert RewriteSettings(model="m").number == 1
    assert RewriteSettings(model="m", prompt=["a", "b"]).number == 2
    assert RewriteSettings(model="split").number == 8
    assert RewriteSettings(model="split", captions_per_image=3).number == 3


class Served(EchoingRewriter):
    """Texts that `prepare` returns, as of a server. The first waits until the process ends."""

    prepares = "texts"
    batch_size = workers = 4
    left: ClassVar[int] = 10**9
    ended: ClassVar[threading.Event] = threading.Event()

    def prepare(self, request: TextRequest) -> Any:
        with self._lock:
            if not Served.left:
                self.ended.set()
                raise KilledError
            Served.left -= 1
            self.asked.append(request)
        if request.texts == ("picture 0",):
            assert self.ended.wait(60)
        return self._texts(request)

    def rewrite(self, prepared: Sequence[Any], requests: Sequence[TextRequest]) -> Any:
        return list(prepared)


def test_a_killed_run_repeats_only_the_requests_that_were_under_way(tmp_path: Path) -> None:
    work, model = opened(tmp_path, 1, 200), f"{__name__}:Served"
    Served.left = 40
    with pytest.raises(KilledError):
        work.rewrite("new", model=model)
    Served.left = 10**9
    assert work.rewrite("new", model=model).ok == 200
    asked = Counter(one.name for one in EchoingRewriter.asked)
    assert len(asked) == 200
    assert asked.total() - 200 <= Served.workers


class Outage(Served):
    """A server that answers `left` requests, and then fails until the run gives up."""

    failed: ClassVar[int] = 0

    def prepare(self, request: TextRequest) -> Any:
        with self._lock:
            if not Outage.left:
                Outage.failed += 1
                if Outage.failed > 8:
                    raise UserError("the requests failed in a row")
                raise SampleError("server_error", "status 503")
            Outage.left -= 1
        return self._texts(request)


def test_failures_of_a_server_that_is_down_are_not_kept(tmp_path: Path) -> None:
    work, model = opened(tmp_path, 1, 200), f"{__name__}:Outage"
    Outage.left = 40
    with pytest.raises(UserError, match="in a row"):
        work.rewrite("new", model=model)
    Outage.left = 1000
    counts = work.rewrite("new", model=model)
    assert (counts.ok, counts.failed) == (200, Counter())
    assert Outage.left == 1000 - 160  # of 200 samples, 40 were done
