"""Streams that record the size and digest of what they write."""

from pathlib import Path

import xxhash

from capmix.storage.record import RecordingStream


def test_a_stream_that_outlives_its_file_is_dropped_in_silence(tmp_path: Path) -> None:
    """Python 3.13 prints a traceback if the finalizer of a stream cannot close it."""
    with (tmp_path / "a").open("wb") as file:
        stream = RecordingStream(file)
        stream.write(b"abc")
    assert not stream.closed
    stream.close()
    assert stream.record.digest == xxhash.xxh3_128(b"abc").hexdigest()
    assert stream.record.size == 3
