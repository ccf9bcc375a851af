"""Fixture: an S3 server shared by the tests of a module."""

from collections.abc import Iterator

import pytest
from s3_server import S3, s3_server


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server
