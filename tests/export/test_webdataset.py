"""Comparison with a simple writer of the same tars, which writes members one at a time."""

import io
import json
import tarfile
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import image_bytes, sample_members, tar_bytes

from capmix.export.samples import Chosen
from capmix.export.webdataset import BATCH, write_tar
from capmix.pool import Sample
from capmix.pool.tar import read_tar
from capmix.storage.record import RecordingStream, digest_of


def plain_tar(samples: Iterable[Chosen], untouched: bool) -> bytes:
    out = io.BytesIO()
    for chosen in samples:
        for copy in chosen.copies:
            sample = chosen.sample
            uid = f"{sample.uid}-{copy}" if copy else sample.uid
            about = json.dumps(sample.metadata | {"uid": uid} | chosen.fields).encode()
            text = chosen.row["text"].encode("utf-8")
            files = {sample.suffix: sample.image, "json": about, "txt": text}
            for suffix, data in (sample.members if untouched else files).items():
                info = tarfile.TarInfo(f"{sample.uid}-{copy}.{suffix}")
                info.size, info.mode = len(data), 0o644
                form = tarfile.PAX_FORMAT if len(info.name) > 100 else tarfile.USTAR_FORMAT
                out.write(info.tobuf(form) + data + bytes(-len(data) % 512))
    return out.getvalue() + bytes(1024)


value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def pools(draw: st.DrawFn) -> bytes:
    """Write a tar of samples with shuffled members, long uids, and members of other kinds."""
    members: list[tuple[str, bytes]] = []
    uids = st.from_regex(r"\A[A-Za-z0-9_-]{1,128}\Z")
    for number, uid in enumerate(draw(st.lists(uids, unique=True, max_size=4))):
        about = draw(st.dictionaries(st.text(max_size=5), value, max_size=4)) | {"uid": uid}
        suffix = draw(st.sampled_from(["jpg", "JPEG", "png", "webp"]))
        sizes = st.sampled_from([0, 1, 511, 512, 513, BATCH - 512, BATCH, 3 * BATCH + 7])
        one = [
            (f"a/{number}.{suffix}", image_bytes(number)[:100].ljust(draw(sizes), b"\0")),
            (f"a/{number}.json", json.dumps(about, ensure_ascii=draw(st.booleans())).encode()),
            (f"a/{number}.txt", draw(st.binary(max_size=20))),
            (f"a/{number}.cls", b"7"),
            (f"a/{number}.npy", b"ignored"),
            (f"a/{number}.seg.png", b"also ignored"),
        ]
        members += draw(st.permutations(one[: draw(st.integers(2, 6))]))
    return tar_bytes(members)


def chosen_of(sample: Sample, text: str, score: float | None, copies: range) -> Chosen:
    row: dict[str, Any] = {"text": text, "source": "blip2", "k": 1, "score": score}
    captions = {"caption_raw": sample.text or "", "caption_blip2_k1": text}
    return Chosen(sample, row, captions, copies, f"{sample.key}.{sample.suffix}")


@given(pools(), st.text(max_size=20), st.floats() | st.none(), st.integers(0, 3), st.booleans())
def test_bytes_and_record_are_those_of_a_plain_writer(
    pool: bytes, text: str, score: float | None, times: int, untouched: bool
) -> None:
    text = text.encode("utf-8", "replace").decode()
    found = [one for one in read_tar(io.BytesIO(pool), "00000") if isinstance(one, Sample)]
    chosen = [
        chosen_of(one, text, score, range(number, number + times))
        for number, one in enumerate(found)
    ]
    out = io.BytesIO()
    stream = RecordingStream(out)
    assert write_tar(stream, chosen, untouched) == times * len(found)
    expected = plain_tar(chosen, untouched)
    assert out.getvalue() == expected
    assert stream.record.digest == digest_of(expected)


@pytest.mark.parametrize("size", [10, 3 * BATCH])
def test_members_that_wait_to_be_written_are_bounded(size: int) -> None:
    (sample,) = read_tar(io.BytesIO(tar_bytes(sample_members("a", 1))), "00000")
    assert isinstance(sample, Sample)
    large = Sample("a", sample.uid, b"x" * size, "jpg", "text")
    written: list[int] = []

    class Sizes:
        def write(self, data: bytes, /) -> None:
            written.append(len(data))

    write_tar(Sizes(), [chosen_of(large, "text", 0.5, range(200))])
    assert max(written) < BATCH + size + 8 * 512
