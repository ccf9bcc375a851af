import io
import json
import tarfile
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import BAD, GOOD, image_bytes, sample_members, tar_bytes

from capmix.pool import BadSample, Sample
from capmix.pool.sample import MAX_IMAGE_BYTES
from capmix.pool.tar import read_tar


def read(data: bytes) -> list[Sample | BadSample]:
    return list(read_tar(io.BytesIO(data), "00000"))


def reasons(found: list[Sample | BadSample]) -> list[str]:
    return [sample.reason if isinstance(sample, BadSample) else "ok" for sample in found]


def test_members_are_read_unchanged() -> None:
    members = sample_members("a", 1, "one") + sample_members("b", 2, "two")
    first, second = read(tar_bytes(members))
    assert isinstance(first, Sample)
    assert (first.key, first.uid, first.text) == ("a", f"{1:032x}", "one")
    assert first.image == image_bytes(1)
    assert isinstance(second, Sample)
    assert second.text == "two"


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_reads_every_tar_form_with_suffixes_in_any_order(form: int) -> None:
    members = list(reversed(sample_members("000000000042", 1)))
    assert reasons(read(tar_bytes(members, form))) == ["ok"]


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("other", ["tif", "HEIC"])
def test_an_image_of_another_format_counts_if_there_is_none_in_a_common_format(
    other: str, at: int
) -> None:
    """Supporting another format must not change the samples of pools indexed before."""
    members = sample_members("a", 1, "one")
    alone = read(tar_bytes([(f"a.{other}", b"x"), *members[1:]]))[0]
    assert isinstance(alone, Sample)
    assert (alone.suffix, alone.image, len(alone.members)) == (other.lower(), b"x", 3)
    plain = read(tar_bytes(members))[0]
    for data in (b"x", b"x" * (MAX_IMAGE_BYTES + 1)):
        both = read(tar_bytes([*members[:at], (f"a.{other}", data), *members[at:]]))
        assert both == [plain]
    two = read(tar_bytes([("a.tif", b"x"), ("a.gif", b"x"), *members[1:]]))
    assert reasons(two) == ["two_images"]


def test_uid_without_json_depends_only_on_shard_and_key() -> None:
    members = [("a.jpg", image_bytes(1)), ("a.txt", b"x")]
    (sample,) = read(tar_bytes(members))
    (again,) = read(tar_bytes(list(reversed(members))))
    assert isinstance(sample, Sample)
    assert isinstance(again, Sample)
    assert sample.uid == again.uid
    assert len(sample.uid) == 32


def test_the_caption_in_the_json_replaces_a_missing_txt() -> None:
    members = sample_members("a", 1, None, caption="from json") + sample_members("b", 2, None)
    first, second = read(tar_bytes(members))
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert (first.text, second.text) == ("from json", None)


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_sample_is_named_and_its_neighbours_stay(reason: str) -> None:
    found = read(tar_bytes([*GOOD, *BAD[reason], *sample_members("last", 10)]))
    assert reasons(found) == ["ok", reason, "ok"]
    assert isinstance(found[1], BadSample)
    assert found[1].detail


def test_each_sample_with_a_dotted_key_is_counted() -> None:
    members = [(f"photo.{i}.jpg", image_bytes(i)) for i in range(3)]
    assert reasons(read(tar_bytes(members))) == ["dotted_key"] * 3


def test_a_second_suffix_before_the_image_is_only_ignored() -> None:
    members = [("a.depth.png", image_bytes(1)), *sample_members("a", 2), ("a.seg.npy", b"x")]
    assert reasons(read(tar_bytes(members))) == ["ok"]


def test_pickles_links_and_paths_never_come_out() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for name, data in [
            ("../../x.pkl", b"cos\nsystem\n(S'false'\ntR."),
            *sample_members("b", 1),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert reasons(read(out.getvalue())) == ["ok"]


@pytest.mark.parametrize("data", [b"", b"<!doctype html><title>404</title>" * 40])
def test_bytes_that_are_not_a_tar_are_one_failed_row(data: bytes) -> None:
    assert reasons(read(data)) == ["not_a_tar"]


def test_an_empty_tar_has_no_rows() -> None:
    assert read(tar_bytes([])) == []


def test_a_truncated_tar_keeps_the_samples_before_the_break() -> None:
    members = [m for i in range(4) for m in sample_members(f"k{i}", i)]
    whole = tar_bytes(members, tarfile.USTAR_FORMAT)
    third = len(tar_bytes(members[:6], tarfile.USTAR_FORMAT).rstrip(b"\0"))
    found = read(whole[: third + 1500])
    assert reasons(found)[:2] == ["ok", "ok"]
    assert reasons(found)[-1] == "truncated_shard"
    assert "k" in found[-1].detail  # type: ignore[union-attr]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_a_break_at_any_place_loses_no_sample_before_it(form: int) -> None:
    """Cut at a header, between members or inside one: a tar ends only with a block of zeros.

    A sample with the members of earlier samples is kept if its last byte is present; the first
    sample is kept once the next one begins.
    """
    samples = [sample_members(f"k{i}", i) for i in range(4)]
    whole = tar_bytes([m for sample in samples for m in sample], form)
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        starts = [info.offset_data for info in archive]
        ends = [info.offset_data + info.size for info in archive]
    needed = [starts[3], *ends[5::3]]
    for cut in range(256, ends[-1] // 512 * 512 + 1024, 256):  # before the end's block is whole
        found = read(whole[:cut])
        kept = sum(need <= cut for need in needed)
        last = "truncated_shard" if cut >= starts[0] else "not_a_tar"
        assert reasons(found) == ["ok"] * kept + [last], cut
        for number in range(4):
            one = list(read_tar(io.BytesIO(whole[:cut]), "00000", {f"k{number}"}))
            assert one[:-1] == found[:-1][number : number + 1], (cut, number)


def broken_after(*samples: str) -> bytes:
    """A tar of samples k0, k1, ... with members of these suffixes, and 600 bytes of garbage."""
    members = [(f"k{i}.{s}", b"{}") for i, sample in enumerate(samples) for s in sample.split()]
    whole = tar_bytes(members, tarfile.USTAR_FORMAT)
    return whole[: 1024 * len(members)] + b"x" * 600


@pytest.mark.parametrize(
    ("samples", "kept"),
    [
        (["jpg json txt"], 0),
        (["jpg json txt", "jpg json txt"], 2),
        (["jpg json txt", "jpg json"], 1),
        (["jpg json txt", "json txt"], 1),
        (["jpg json txt", "jpg json", "jpg json"], 2),
        (["jpg json", "jpg json txt"], 2),
        (["jpg json", "png json"], 2),
        (["jpg png json", "jpg json"], 1),
        (["jpg", "jpg"], 2),
        (["jpg npy", "jpg"], 2),
        (["jpg txt", "depth.png txt"], 1),
    ],
)
def test_a_sample_at_a_break_is_complete_if_it_has_the_members_of_all_before_it(
    samples: list[str], kept: int
) -> None:
    found = read(broken_after(*samples))
    assert len(found) == kept + 1
    assert reasons(found)[-1] == "truncated_shard"


def test_a_sample_whose_last_member_is_truncated_is_incomplete() -> None:
    """Even if that member is ignored, since more of the sample may have followed it."""
    for suffix in ("txt", "npy"):
        members = [(f"k{i}.{s}", b"{}" * 400) for i in range(2) for s in ("jpg", suffix)]
        whole = tar_bytes(members, tarfile.USTAR_FORMAT).rstrip(b"\0")
        assert reasons(read(whole)) == ["ok", "ok", "truncated_shard"]
        assert reasons(read(whole[:-1])) == ["ok", "truncated_shard"]


def test_a_broken_header_in_the_middle_is_reported() -> None:
    members = [m for key in "abc" for m in sample_members(key, ord(key))]
    whole = bytearray(tar_bytes(members, tarfile.GNU_FORMAT))
    start = whole.index(b"c.jpg\0")
    whole[start : start + 512] = b"x" * 512
    found = read(bytes(whole))
    assert reasons(found) == ["ok", "ok", "truncated_shard"]
    assert "broken after member b.txt" in found[-1].detail  # type: ignore[union-attr]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize(("letter", "read_before"), [("a", 258), ("\u732b", 64)])
def test_names_of_one_tar_are_bounded_together(
    form: int, letter: str, read_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each name is below the limit of a single name.

    A name with a non-ASCII character counts as four bytes per character.
    """
    monkeypatch.setattr("capmix.pool.tar_members.MAX_NAMES_BYTES", 1 << 20)
    long = "a" * 4050 + letter
    members = [(f"{long}{i:05d}.png", b"") for i in range(300)]
    found = read(tar_bytes(members, form))
    assert reasons(found) == ["ok"] * read_before + ["too_many_bytes"]
    detail = found[-1].detail  # type: ignore[union-attr]
    assert "member names exceed 1 MiB" in detail
    assert len(detail) < 400


def test_gzip_is_read_too() -> None:
    import gzip

    assert reasons(read(gzip.compress(tar_bytes(GOOD)))) == ["ok"]


@given(st.lists(st.sampled_from(["good", *BAD]), max_size=8), st.integers(0, 100))
def test_every_group_of_members_yields_one_row(kinds: list[str], seed: int) -> None:
    members, groups = sample_members("first", 10**6), 1
    for number, kind in enumerate(kinds):
        if kind in ("duplicate_uid", "duplicate_key"):
            continue
        key = f"s{seed}x{number}"
        for name, data in sample_members("bad", number) if kind == "good" else BAD[kind]:
            value = data
            if name.endswith(".json") and kind != "bad_json":
                value = json.dumps(json.loads(data) | ({} if kind == "bad_uid" else {"uid": key}))
                value = value.encode()
            suffix = name.split(".", 1)[1]
            members.append((f"{key}.{suffix}", value))
        groups += 1
    found = read(tar_bytes(members))
    assert len(found) == groups
    expected = [k for k in kinds if k not in ("duplicate_uid", "duplicate_key")]
    assert reasons(found)[1:] == ["ok" if k == "good" else k for k in expected]


def test_memory_does_not_grow_with_the_shard() -> None:
    image = np.random.default_rng(0).bytes(200_000)
    members = [(f"{i:09d}.jpg", image) for i in range(200)]
    stream = io.BytesIO(tar_bytes(members))
    tracemalloc.start()
    count = sum(isinstance(sample, Sample) for sample in read_tar(stream, "00000"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 200
    assert peak < 10 * len(image)
