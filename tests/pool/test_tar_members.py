"""Compare with Python's tarfile."""

import gzip
import io
import os
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import tar_bytes

from capmix.pool.tar_members import CHUNK, WINDOW, TarError, TarMembers

FORMS = [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT]
name = st.text("abcé/._-", min_size=1, max_size=230).filter(lambda n: n.strip("/.") == n)


@given(st.lists(st.tuples(name, st.binary(max_size=1500))), st.sampled_from(FORMS), st.booleans())
def test_names_and_bytes_equal_those_of_tarfile(
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
                assert form == tarfile.USTAR_FORMAT  # the name is too long for USTAR
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
def test_bytes_that_are_not_a_tar_raise(data: bytes) -> None:
    if len(data) >= 512 and not any(data[:512]):
        return
    with pytest.raises((TarError, zlib.error)):
        list(TarMembers(io.BytesIO(data)))


def test_a_truncated_member_raises() -> None:
    info = tarfile.TarInfo("a")
    info.size = 5000
    with pytest.raises(TarError, match="unexpected end"):
        members = TarMembers(io.BytesIO(info.tobuf() + b"x" * 4000))
        for _ in members:
            members.read()


@pytest.mark.parametrize("size", [b"-0000000001", b"00000000x01", b"+0000000001"])
def test_a_size_that_is_not_a_number_raises(size: bytes) -> None:
    header = bytearray(tarfile.TarInfo("a").tobuf())
    header[124:135] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(TarError, match="bad size"):
        list(TarMembers(io.BytesIO(bytes(header) + b"x" * 4000)))


def test_bytes_of_a_name_that_are_not_utf8_are_escaped() -> None:
    header = tarfile.TarInfo("caf\xe9.jpg").tobuf(tarfile.GNU_FORMAT, "latin-1")
    found = list(TarMembers(io.BytesIO(header + bytes(1024))))
    assert found == [("caf\\xe9.jpg", 0)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("is_read", [False, True])
def test_a_member_is_complete_if_its_last_byte_is_there(packed: bool, is_read: bool) -> None:
    """Also if it is skipped by a seek, which can go beyond the end of the file."""
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


class ShortReads(io.BytesIO):
    """Returns fewer bytes than requested, and is not seekable."""

    def seekable(self) -> bool:
        return False

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, 700))


def walked(stream: BinaryIO, take: set[int]) -> list[tuple[str, int, bytes] | str]:
    """List the members (with bytes for the numbers in `take`), and the error at the end, if any."""
    found: list[tuple[str, int, bytes] | str] = []
    try:
        members = TarMembers(stream)
        for number, (path, size) in enumerate(members):
            found.append((path, size, members.read() if number in take else b""))
    except (TarError, zlib.error) as error:
        found.append(f"{type(error).__name__} {members.is_whole}")
    return found


@given(
    st.lists(st.tuples(name, st.binary(max_size=2500)), max_size=6),
    st.sets(st.integers(0, 6)),
    st.sampled_from([512, 700, 1024, 4096]),
    st.integers(0, 3000),
    st.booleans(),
)
def test_the_position_of_windows_does_not_change_the_result(
    members: list[tuple[str, bytes]], take: set[int], window: int, cut: int, packed: bool
) -> None:
    """Also for short reads and truncated tars."""
    whole = tar_bytes(members).rstrip(b"\0") + bytes(1024)
    whole = whole[: len(whole) - cut]
    whole = gzip.compress(whole) if packed else whole
    expected = walked(io.BytesIO(whole), take)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("capmix.pool.tar_members.WINDOW", window)
        patch.setattr("capmix.pool.tar_members.CHUNK", window)
        assert walked(io.BytesIO(whole), take) == expected
        assert walked(ShortReads(whole), take) == expected


def test_a_file_that_is_truncated_while_it_is_read_raises(tmp_path: Path) -> None:
    """If the file were memory-mapped, a signal would kill the process."""
    path = tmp_path / "a.tar"
    members_of = [(f"{i}.bin", b"x" * WINDOW) for i in range(4)]
    path.write_bytes(tar_bytes(members_of, tarfile.USTAR_FORMAT))
    with path.open("rb") as stream:
        members = TarMembers(stream)
        walk = iter(members)
        assert next(walk) == ("0.bin", WINDOW)
        os.truncate(path, WINDOW + 2000)
        assert members.read() == b"x" * WINDOW
        assert next(walk) == ("1.bin", WINDOW)
        with pytest.raises(TarError, match="unexpected end"):
            members.read()


def test_a_header_may_have_a_signed_checksum() -> None:
    header = bytearray(tarfile.TarInfo("caf\xe9\xe8.jpg").tobuf(tarfile.GNU_FORMAT, "latin-1"))
    header[148:156] = b" " * 8
    total = sum(header)
    for checksum, is_right in ((total, True), (total - 512, True), (total - 256, False)):
        header[148:156] = b"%06o\0 " % checksum
        data = bytes(header) + bytes(1024)
        if is_right:
            assert len(list(TarMembers(io.BytesIO(data)))) == 1
        else:
            with pytest.raises(TarError, match="checksum"):
                list(TarMembers(io.BytesIO(data)))
