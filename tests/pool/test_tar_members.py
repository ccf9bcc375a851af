"""Against Python's own tarfile."""

import gzip
import io
import tarfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capmix.pool.tar_members import CHUNK, TarError, TarMembers

FORMS = [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT]
name = st.text("abcé/._-", min_size=1, max_size=230).filter(lambda n: n.strip("/.") == n)


@given(st.lists(st.tuples(name, st.binary(max_size=1500))), st.sampled_from(FORMS), st.booleans())
def test_names_and_bytes_are_tarfiles(
    members: list[tuple[str, bytes]], form: int, packed: bool
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for path, data in members:
            info = tarfile.TarInfo(path)
            info.size, info.mtime = len(data), 0.25
            try:
                archive.addfile(info, io.BytesIO(data))
            except ValueError:
                assert form == tarfile.USTAR_FORMAT  # the name is too long for it
                return
    expected = []
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        for info in archive:
            content = archive.extractfile(info)
            expected.append((info.name, content.read() if content else b""))
    whole = gzip.compress(out.getvalue()) if packed else out.getvalue()
    found = TarMembers(io.BytesIO(whole))
    assert [(path, found.read()) for path, _ in found] == expected
    skipped = TarMembers(io.BytesIO(whole))
    assert [path for path, _ in skipped] == [path for path, _ in expected]


@pytest.mark.parametrize("packed", [False, True])
def test_large_members_are_skipped_and_read(packed: bool) -> None:
    out = io.BytesIO()
    data = [bytes([i]) * (CHUNK + 1000 * i) for i in range(4)]
    with tarfile.open(fileobj=out, mode="w") as archive:
        for i, one in enumerate(data):
            info = tarfile.TarInfo(f"{i}.bin")
            info.size = len(one)
            archive.addfile(info, io.BytesIO(one))
    whole = gzip.compress(out.getvalue()) if packed else out.getvalue()
    members = TarMembers(io.BytesIO(whole))
    read = [members.read() for path, _ in members if path in ("1.bin", "3.bin")]
    assert read == [data[1], data[3]]


@given(st.binary(max_size=2000))
def test_other_bytes_are_told(data: bytes) -> None:
    if len(data) >= 512 and not any(data[:512]):
        return
    with pytest.raises((TarError, zlib.error)):
        list(TarMembers(io.BytesIO(data)))


def test_a_member_that_breaks_off_is_told() -> None:
    info = tarfile.TarInfo("a")
    info.size = 5000
    with pytest.raises(TarError, match="unexpected end"):
        members = TarMembers(io.BytesIO(info.tobuf() + b"x" * 4000))
        for _ in members:
            members.read()


@pytest.mark.parametrize("size", [b"-0000000001", b"00000000x01", b"+0000000001"])
def test_a_size_that_is_no_number_is_told(size: bytes) -> None:
    header = bytearray(tarfile.TarInfo("a").tobuf())
    header[124:135] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(TarError, match="bad size"):
        list(TarMembers(io.BytesIO(bytes(header) + b"x" * 4000)))


def test_a_name_that_is_no_utf8_is_written_out() -> None:
    header = tarfile.TarInfo("caf\xe9.jpg").tobuf(tarfile.GNU_FORMAT, "latin-1")
    found = list(TarMembers(io.BytesIO(header + bytes(1024))))
    assert found == [("caf\\xe9.jpg", 0)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("is_read", [False, True])
def test_a_member_is_whole_if_its_last_byte_is_there(packed: bool, is_read: bool) -> None:
    """One that is skipped by a seek too, which reaches behind the end of a file."""
    info = tarfile.TarInfo("a")
    info.size = CHUNK + 700
    whole = info.tobuf() + b"x" * info.size
    for missing in (0, 1):
        data = whole[: len(whole) - missing]
        members = TarMembers(io.BytesIO(gzip.compress(data) if packed else data))
        assert members.is_whole
        with pytest.raises(TarError):
            for _ in members:
                assert not members.is_whole
                if is_read:
                    members.read()
        assert members.is_whole == (not missing)
