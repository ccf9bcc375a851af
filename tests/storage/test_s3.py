"""S3 through obstore: forks, credentials, unusual keys, errors, and agreement with s3fs."""

import multiprocessing
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from s3_server import BUCKET, S3
from samples import write_pool

from capmix.errors import UserError
from capmix.pool import BadSample, open_pool
from capmix.storage import s3 as module
from capmix.storage.filesystem import files_below, open_file_system
from capmix.storage.s3 import Access, S3FileSystem, _region_of

FORK = multiprocessing.get_context("fork")
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL")


@pytest.fixture(autouse=True)
def emptied(s3: S3) -> Iterator[None]:
    S3FileSystem.clear_instance_cache()
    s3.requests.clear()
    yield
    S3FileSystem.clear_instance_cache()
    s3.faults.clear()
    client = boto3.client("s3")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for one in page.get("Contents", ()):
            client.delete_object(Bucket=BUCKET, Key=one["Key"])


def put(key: str, data: bytes = b"0123456789") -> None:
    boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=data)


def in_a_fork(read: Any) -> Any:
    """Return the result of `read` in a forked child, or "hangs" if it does not finish."""
    here, there = FORK.Pipe(duplex=False)

    def work() -> None:
        try:
            there.send(read())
        except Exception as error:
            there.send(f"{type(error).__name__}: {error}")

    child = FORK.Process(target=work)
    child.start()
    found = here.recv() if here.poll(20) else "hangs"
    child.kill()
    child.join()
    return found


def test_twenty_forked_children_read_where_their_parent_has_opened_and_not_read(s3: S3) -> None:
    put("a/b")
    spawn = multiprocessing.get_context("spawn")  # this process may have read
    with ProcessPoolExecutor(1, mp_context=spawn) as new:
        found = new.submit(children_of_one_that_opened, f"s3://{BUCKET}/a").result()
    assert found == [b"0123456789"] * 20


def children_of_one_that_opened(location: str) -> list[bytes]:
    fs, root = open_file_system(location, "pool")
    return [in_a_fork(lambda: fs.cat_file(f"{root}/b")) for _ in range(20)]


def test_a_child_of_a_process_that_has_read_is_refused_at_once(s3: S3) -> None:
    put("a/b")
    fs, root = open_file_system(f"s3://{BUCKET}/a", "pool")
    assert fs.cat_file(f"{root}/b") == b"0123456789"
    found = in_a_fork(lambda: fs.cat_file(f"{root}/b"))
    assert found.startswith("UserError: s3://: this process was forked from one that had used S3")
    new = in_a_fork(lambda: S3FileSystem(skip_instance_cache=True).exists(f"{root}/b"))
    assert new == found


def test_file_information_is_the_same_as_from_s3fs(s3: S3) -> None:
    """Fingerprints of pools depend on it: work directories written through s3fs stay valid."""
    for key in ("p/a.tar", "p/b c+d%20e.tar", "p/ü#?[1]{2}~&.tar", "p/q/r/c.tar", "pq/d.tar"):
        put(key, key.encode())
    fs, root = open_file_system(f"s3://{BUCKET}/p", "pool")
    ours, theirs = files_below(fs, root), files_below(s3.fs, root)
    assert list(ours) == sorted(theirs)
    for name, info in ours.items():
        assert info == {key: theirs[name][key] for key in ("name", "size", "type", "ETag")}
        assert fs.info(name) == info
        assert fs.cat_file(name) == s3.fs.cat_file(name)
        with fs.open(name, "rb") as stream:
            assert (stream.read(3), stream.seek(1), stream.read()) == (
                s3.fs.cat_file(name)[:3], 1, s3.fs.cat_file(name)[1:],
            )  # fmt: skip
    assert fs.ls(root, detail=False) == sorted(s3.fs.ls(root, detail=False))
    assert files_below(fs, f"{root}/a.tar") == {f"{root}/a.tar": ours[f"{root}/a.tar"]}
    assert files_below(fs, f"{root}/none") == {}
    assert [fs.exists(f"{root}{end}") for end in ("", "/a.tar", "/q", "/no")] == [1, 1, 1, 0]
    with pytest.raises(FileNotFoundError):
        fs.ls(f"{root}/none")
    with pytest.raises(FileNotFoundError):
        fs.open(f"{root}/none", "rb")


def test_the_object_that_a_console_makes_for_a_folder_is_no_file(s3: S3) -> None:
    put("d/", b"")
    put("d/e/", b"")
    put("d/e/a.tar")
    fs, root = open_file_system(f"s3://{BUCKET}/d", "pool")
    assert list(files_below(fs, root)) == [f"{root}/e/a.tar"]
    assert fs.ls(root, detail=False) == [f"{root}/e"]


def test_a_key_that_obstore_cannot_name_is_one_failed_row_of_its_pool(
    s3: S3, tmp_path: Path
) -> None:
    tar = (write_pool(tmp_path / "pool", 1, 3) / "00000.tar").read_bytes()
    for key in ("p/00000.tar", "p/a//00001.tar"):
        put(key, tar)
    pool = open_pool(f"s3://{BUCKET}/p")
    found = {shard.name: list(pool.read(shard)) for shard in pool.shards}
    assert {name: len(samples) for name, samples in found.items()} == {"00000": 3, "a//00001": 1}
    (bad,) = found["a//00001"]
    assert isinstance(bad, BadSample)
    assert bad.reason == "unreadable_shard"
    assert "rename the object" in bad.detail


def test_a_bucket_that_is_not_there_or_closed_is_an_error_at_once(s3: S3) -> None:
    fs = S3FileSystem()
    for call in (fs.find, fs.ls, fs.info, fs.cat_file):
        with pytest.raises(FileNotFoundError, match="no such object or bucket: 'no-such/x'"):
            call("no-such/x")
    assert not fs.exists("no-such")
    assert files_below(fs, "no-such/x") == {}
    for call in (fs.find, fs.ls, fs.info, fs.exists, fs.cat_file, fs.rm_file):
        s3.faults += [403]
        with pytest.raises(PermissionError, match="denied.*403 Forbidden"):
            call(f"{BUCKET}/x")
        assert not s3.faults


def test_an_object_that_is_replaced_while_it_is_read_is_not_mixed(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW", 4)
    put("a")
    fs, _ = open_file_system(f"s3://{BUCKET}", "pool")
    with fs.open(f"{BUCKET}/a", "rb") as stream:
        assert stream.read(2) == b"01"
        put("a", b"abcdefghij")
        with pytest.raises(OSError, match="replaced while it was being read"):
            stream.read()


def test_a_file_system_travels_to_another_process(s3: S3) -> None:
    fs = S3FileSystem(endpoint_url="http://127.0.0.1:1", anon="true")
    again = pickle.loads(pickle.dumps(fs))
    assert again._access == Access(endpoint_url="http://127.0.0.1:1", anon=True)


def unset(monkeypatch: pytest.MonkeyPatch) -> str:
    """Unset the AWS variables and return the endpoint."""
    url = os.environ["AWS_ENDPOINT_URL"]
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return url


def test_a_profile_of_the_users_files_is_used(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("a")
    url = unset(monkeypatch)
    (tmp_path / "config").write_text(
        f"[profile other]\nregion = eu-west-3\nendpoint_url = {url}\n", "utf-8"
    )
    (tmp_path / "keys").write_text(
        "[other]\naws_access_key_id = OTHER\naws_secret_access_key = s\naws_session_token = t\n",
        "utf-8",
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("AWS_PROFILE", "other")
    s3.signed.clear()
    assert open_file_system(f"s3://{BUCKET}", "pool")[0].cat_file(f"{BUCKET}/a") == b"0123456789"
    (signed,) = s3.signed
    assert "Credential=OTHER/" in signed
    assert "/eu-west-3/s3/" in signed
    assert "x-amz-security-token" in signed


def test_without_credentials_is_one_clear_line(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", unset(monkeypatch))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    fs = S3FileSystem(endpoint_url="http://127.0.0.1:1")
    with pytest.raises(PermissionError, match="no AWS credentials: set AWS_ACCESS_KEY_ID"):
        fs.exists(f"{BUCKET}/a")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("AWS_ENDPOINT_URL", "no-url", "s3://bucket: Invalid endpoint: no-url; check AWS_ENDPOINT"),
        ("AWS_CA_BUNDLE", "/none", "cannot read AWS_CA_BUNDLE /none: No such file or directory"),
        ("AWS_CA_BUNDLE", "{damaged}", "s3://bucket: .*; check AWS_ENDPOINT_URL and AWS_CA_BUNDLE"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_no_missing_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    (tmp_path / "damaged").write_text("-----BEGIN CERTIFICATE-----\nx\n", "utf-8")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://127.0.0.1:1")
    monkeypatch.setenv(name, value.format(damaged=tmp_path / "damaged"))
    with pytest.raises(UserError, match=told):
        S3FileSystem().exists("bucket/a")


def test_fsspecs_configuration_and_anonymous_access(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.config import conf, set_conf_env

    boto3.client("s3").put_object(Bucket=BUCKET, Key="a", Body=b"a" * 10, ACL="public-read")
    monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", unset(monkeypatch))
    monkeypatch.setenv("FSSPEC_S3_ANON", "true")
    monkeypatch.setitem(conf, "s3", {})
    set_conf_env(conf)
    s3.signed.clear()
    fs, _ = open_file_system(f"s3a://{BUCKET}/a", "pool")
    assert fs.info(f"{BUCKET}/a")["size"] == 10
    assert s3.signed == [""]
    conf["s3"] = {"default_block_size": 1}
    with pytest.raises(
        UserError, match="unknown fsspec option 'default_block_size'; expected one of anon"
    ):
        open_file_system(f"s3://{BUCKET}/a", "pool")


def test_a_bucket_of_aws_is_asked_for_in_its_own_region(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests only the two steps, because the test server is not AWS."""
    client = boto3.client("s3")
    assert _region_of(BUCKET, client) == "us-east-1"
    assert _region_of("no-such-bucket", client) is None
    unset(monkeypatch)
    monkeypatch.setattr(module, "_region_of", lambda *_: "eu-west-3")
    store = Access(key="k", secret="s").store("bucket")
    assert store.config["endpoint"] == "https://s3.eu-west-3.amazonaws.com/bucket"
    assert store.config["region"] == "eu-west-3"


@pytest.mark.parametrize(
    ("style", "url"),
    [("path", "https://x.example/bucket"), ("virtual", "https://bucket.x.example")],
)
def test_a_bucket_is_in_the_path_or_the_host_as_the_users_configuration_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, style: str, url: str
) -> None:
    unset(monkeypatch)
    text = f"[default]\nendpoint_url = https://x.example\ns3 =\n  addressing_style = {style}\n"
    (tmp_path / "config").write_text(text, "utf-8")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert Access(anon=True).store("bucket").config["endpoint"] == url


@pytest.mark.parametrize(("attempts", "requests"), [("1", 1), ("3", 3), (None, 5)])
def test_a_request_is_tried_as_often_as_botocore_would(
    s3: S3, monkeypatch: pytest.MonkeyPatch, attempts: str | None, requests: int
) -> None:
    if attempts:
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", attempts)
    fs, _ = open_file_system(f"s3://{BUCKET}", "pool")
    s3.faults += [503] * 10
    with pytest.raises(OSError, match="503"):
        fs.cat_file(f"{BUCKET}/a")
    assert len(s3.requests) == requests
