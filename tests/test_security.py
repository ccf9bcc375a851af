"""What docs/security.md says, where no other test shows it."""

import gzip
import http.server
import io
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import tarfile
import threading
import tracemalloc
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from null_models import failing_captions, null_captions
from s3_server import BUCKET, S3, SETTINGS, s3_server
from samples import GOOD, image_bytes, sample_members, tar_bytes, write_pool
from tiny_clip import CLIP, open_clip_folder
from tiny_models import blip, clip, llava

from capmix import jobs
from capmix.caption.settings import CaptionSettings
from capmix.caption.transformers import TransformersCaptioner
from capmix.cli import main
from capmix.config import load_pipeline
from capmix.errors import UserError
from capmix.evaluate.fetch import fetch
from capmix.evaluate.tasks import TASKS
from capmix.mix.expression import parse
from capmix.mix.plan import locked_connection
from capmix.mix.recipe import load_recipe
from capmix.pool import BadSample, open_pool
from capmix.pool.sample import MAX_IMAGE_BYTES
from capmix.pool.tar import read_tar
from capmix.score.open_clip import load_open_clip
from capmix.score.transformers import TransformersScorer
from capmix.store import Store
from capmix.train.model import know_model
from capmix.train.pairs import ExportedShards
from capmix.train.run import Run
from capmix.train.scales import TrainSettings
from capmix.train.train import train

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/security.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
MIB = 2**20
KEY = "sk-a-key-that-nobody-may-see"
NANO = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


class Hostile:
    """A pickle that makes the directory `proof` where it is loaded."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


class Quiet(http.server.BaseHTTPRequestHandler):
    """Notes what it is asked, and says nothing on the terminal."""

    asked: list[tuple[str, str, dict[str, str]]]

    def parse_request(self) -> bool:
        good = super().parse_request()
        if good:
            self.asked.append((self.command, self.path, dict(self.headers)))
        return good

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture
def serving() -> Iterator[Callable[[type[Quiet]], tuple[str, list[Any]]]]:
    """Starts a server; gives its address and the list of what it was asked."""
    servers = []

    def start(kind: type[Quiet]) -> tuple[str, list[Any]]:
        handler = type("Handler", (kind,), {"asked": []})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", handler.asked  # type: ignore[attr-defined]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_every_test_that_the_page_names_is_there() -> None:
    text = PAGE.read_text("utf-8")
    named = NAMED.findall(text)
    assert len(named) > 60
    assert text.count("::test_") == len(named)
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text("utf-8"), f"{file}::{name}"


# The pool


def packed_tar(name: str, size: int) -> bytes:
    """A gzipped tar of a member of zeros, then a good sample."""
    header = tarfile.TarInfo(name)
    header.size = size
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as stream:
        stream.write(header.tobuf())
        for _ in range(size // MIB):
            stream.write(bytes(MIB))
        stream.write(tar_bytes(GOOD))
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "reasons"), [("a.bin", ["ok"]), ("a.jpg", ["too_many_bytes", "ok"])]
)
def test_a_gzip_bomb_is_walked_in_bounded_memory(name: str, reasons: list[str]) -> None:
    bomb = packed_tar(name, MAX_IMAGE_BYTES + MIB)
    assert len(bomb) < 100_000
    tracemalloc.start()
    found = list(read_tar(io.BytesIO(bomb), "00000"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [s.reason if isinstance(s, BadSample) else "ok" for s in found] == reasons
    assert peak < 16 * MIB


def test_a_parquet_image_over_the_limit_is_one_failed_row(tmp_path: Path) -> None:
    images = [image_bytes(1), bytes(MAX_IMAGE_BYTES + 1), image_bytes(2)]
    table = pa.table({"image": pa.array(images, pa.binary())})
    pq.write_table(table, tmp_path / "p.parquet", compression="zstd")
    pool = open_pool(str(tmp_path))
    found = list(pool.read(pool.shards[0]))
    reasons = [one.reason if isinstance(one, BadSample) else "ok" for one in found]
    assert reasons == ["ok", "too_many_bytes", "ok"]


LINKS = [
    "good.tar", "../../../../escape.tar", "sub/../../escape.tar", "%2e%2e/inside.tar",
    "..%2f..%2finside.tar", "/etc/escape.tar", "//elsewhere.example/escape.tar",
]  # fmt: skip


class Index(Quiet):
    """An index page that names files outside of its folder; every other path is a tar."""

    def do_GET(self) -> None:
        if self.path.rstrip("/").endswith("/pool"):
            page = "".join(f'<a href="{link}">x</a>' for link in LINKS).encode()
            self.answer(200, page, Content_Type="text/html")
        else:
            self.answer(200, tar_bytes(GOOD))

    do_HEAD = do_GET  # noqa: N815


@pytest.mark.parametrize("place", ["http", "s3"])
def test_a_listing_that_climbs_out_of_its_pool_writes_nothing_elsewhere(
    place: str, serving: Callable[..., Any], s3: S3, tmp_path: Path
) -> None:
    if place == "http":
        pool = f"{serving(Index)[0]}/pool"
    else:
        from moto.s3.models import s3_backends

        for link in LINKS:
            s3_backends["123456789012"]["aws"].put_object(
                BUCKET, f"climbing/{link}", tar_bytes(GOOD)
            )
        pool = f"s3://{BUCKET}/climbing"
    folder = tmp_path / "a/b/c/d/work"
    work = jobs.open_work(pool, str(folder), max_failures=1.0)
    work.index()
    assert not [one.name for one in work.pool.shards if ".." in one.name.split("/")]
    assert "samples/good.parquet" in files(folder)
    assert all(name.startswith("a/b/c/d/work/") for name in files(tmp_path))


class Nobody(Quiet):
    def do_GET(self) -> None:
        self.answer(200, image_bytes(9))

    do_HEAD = do_POST = do_GET  # noqa: N815


def test_a_url_that_stands_in_data_is_never_asked(
    serving: Callable[..., Any], tmp_path: Path
) -> None:
    """In a json's fields, in an image of parquet that is only a path, in metadata, in captions."""
    address, asked = serving(Nobody)
    url = f"{address}/secret.jpg"
    private = tmp_path / "private.jpg"
    private.write_bytes(image_bytes(7))
    for folder in ("tars", "images", "metadata"):
        (tmp_path / folder).mkdir()
    members = [m for i in range(2) for m in sample_members(f"k{i}", i, url, url=url, image=url)]
    (tmp_path / "tars/0.tar").write_bytes(tar_bytes(members))
    paths = [url, str(private), f"file://{private}", "good.jpg"]
    data = [None, None, b"", image_bytes(1)]
    images = [{"bytes": d, "path": p} for d, p in zip(data, paths, strict=True)]
    pq.write_table(pa.table({"image": images}), tmp_path / "images/0.parquet")
    table = pa.table({"uid": ["a"], "url": [url], "text": [url]})
    pq.write_table(table, tmp_path / "metadata/0.parquet")
    reasons: dict[str, dict[str, int]] = {}
    for folder in ("tars", "images", "metadata"):
        pool, place = str(tmp_path / folder), str(tmp_path / f"work-{folder}")
        work = jobs.open_work(pool, place, max_failures=1.0)
        jobs.mix(work, "raw") if folder != "images" else work.index()
        marker = work.store.read_marker("samples/0")
        assert marker is not None
        reasons[folder] = dict(marker.counts.failed)
    assert reasons == {"tars": {}, "images": {"no_image": 3}, "metadata": {}}
    (tmp_path / "c.csv").write_text(f"uid,text\n{0:032x},{url}\n")
    work = jobs.open_work(str(tmp_path / "tars"), str(tmp_path / "work-tars"))
    jobs.import_captions(work, [str(tmp_path / "c.csv")], "web", "uid", "text")
    jobs.export(work, "raw", str(tmp_path / "out"), form="jsonl")
    assert asked == []


def test_names_on_a_disk_come_from_uids_and_never_from_keys(tmp_path: Path) -> None:
    """Keys that climb, absolute ones, and ones of Windows."""
    members = []
    for i, key in enumerate(["../../climbs", "/etc/absolute", "a/../../b", "C:\\c", "d\\e"]):
        members += sample_members(key, i)
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/0.tar").write_bytes(tar_bytes(members))
    work = jobs.open_work(str(tmp_path / "pool"), str(tmp_path / "w"))
    jobs.mix(work, "raw")
    jobs.export(work, "raw", str(tmp_path / "a/b/files"), form="jsonl")
    jobs.export(work, "raw", str(tmp_path / "a/b/tars"))
    uids = [f"{i:032x}-0" for i in range(5)]
    images = tmp_path / "a/b/files/images/00000000"
    assert sorted(path.name for path in images.glob("*.jpg")) == [f"{uid}.jpg" for uid in uids]
    with tarfile.open(tmp_path / "a/b/tars/00000000.tar") as archive:
        assert {member.name.partition(".")[0] for member in archive} == set(uids)
    others = [name for name in files(tmp_path) if not name.startswith(("pool/", "w/", "a/b/"))]
    assert others == []


@pytest.mark.parametrize("uid", ["../x", "a/b", "a\n", "a b", "\xe9", "x" * 129, "", None, ".."])
def test_uids_of_metadata_are_letters_digits_and_dashes(uid: str | None, tmp_path: Path) -> None:
    table = pa.table({"uid": ["good", uid], "text": ["a", "b"]})
    pq.write_table(table, tmp_path / "0.parquet")
    work = jobs.open_work(str(tmp_path), str(tmp_path / "w"), max_failures=1.0)
    work.index()
    assert work.store.read_table("samples/0.parquet")["uid"].to_pylist() == ["good", None]


# Captions and texts


def test_failures_are_printed_without_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In keys, uids, names of members and of shards; nor what turns the direction of a text."""
    members = [("\x1b]0;owned\x07a.x.jpg", image_bytes(1)), *sample_members("b\u202e", 2)]
    members += sample_members("c\x9b2J", 3, uid="\x1b[2J\r\n")
    (tmp_path / "p").mkdir()
    (tmp_path / "p/\x1b[31m.tar").write_bytes(tar_bytes(members))
    work = jobs.open_work(str(tmp_path / "p"), str(tmp_path / "w"), max_failures=1.0)
    work.index()
    work.run(partial(failing_captions, work.pool, [f"{2:032x}"]))
    capsys.readouterr()
    assert main(["failures", "--work", str(tmp_path / "w")]) == 0
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 5
    assert all(c.isprintable() or c in "\t\n" for c in told.out + told.err)


# Recipes and pipeline files


@pytest.mark.parametrize(
    "condition",
    [
        "read_text('/etc/passwd') is null",
        "glob('/etc/*') is null",
        "query('select 1') is null",
        "exists(from duckdb_secrets())",
        "uid in (from duckdb_settings() select name)",
        "other.uid = 'x'",
        "main.batch.uid = 'x'",
        "columns('.*') is null",
        "$1 = 'x'",
        "getenv('HOME') = 'x'",
        "current_setting('home_directory') = 'x'",
        "getvariable('x') is null",
        "write_log('x') is null",
        "nextval('x') > 0",
        "json_execute_serialized_sql('x') is null",
        "random() < 0.5",
        "now() is null",
        "count(*) > 1",
        "row_number() over () > 1",
        "list_transform([1], x -> x) = [1]",
        "true; install httpfs",
        "true) from samples; attach 'x.db' as x; select (true",
    ],
)
def test_a_condition_reaches_nothing_but_its_own_row(condition: str) -> None:
    with pytest.raises(UserError, match=r"^clause 1: "):
        parse(condition, "clause 1")


@pytest.mark.parametrize(
    "statement",
    [
        "select * from read_text('/etc/passwd')",
        "select * from read_csv('/etc/passwd')",
        "select * from glob('/etc/*')",
        "select * from 'https://127.0.0.1/x.parquet'",
        "select * from '{folder}/x.csv'",
        "copy (select 1) to '{folder}/written.csv'",
        "export database '{folder}/exported'",
        "attach '{folder}/x.db' as x",
        "install httpfs",
        "load httpfs",
        "load '{folder}/x.duckdb_extension'",
        "set enable_external_access = true",
        "reset enable_external_access",
        "set autoload_known_extensions = true",
        "set temp_directory = '{folder}'",
    ],
)
def test_the_connection_of_recipes_reaches_no_file_network_or_extension(
    statement: str, tmp_path: Path
) -> None:
    """A second lock, for SQL that the parser would have let through."""
    (tmp_path / "x.csv").write_text("a\n1\n")
    with pytest.raises(duckdb.Error):
        locked_connection().execute(statement.format(folder=tmp_path)).fetchall()
    assert files(tmp_path) == {"x.csv"}


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir ['{proof}']",
        "!!python/object/new:os.mkdir ['{proof}']",
        "!!python/name:os.mkdir ''",
        "!!python/module:os ''",
        "!custom {{a: 1}}",
    ],
)
def test_yaml_tags_make_no_objects(value: str, tmp_path: Path) -> None:
    proof, file = tmp_path / "proof", tmp_path / "x.yaml"
    file.write_text(f"pool: {value.format(proof=proof)}\nwork: w\n")
    for load in (load_recipe, load_pipeline):
        with pytest.raises(UserError, match="not YAML"):
            load(str(file))
    assert not proof.exists()


# Model folders and checkpoints


def pickled_captioner(folder: Path, proof: Path) -> Callable[[], Any]:
    place = blip(folder)
    (place / "model.safetensors").unlink()
    torch.save({"w": Hostile(proof)}, place / "pytorch_model.bin")
    return lambda: TransformersCaptioner(CaptionSettings(model=str(place), device="cpu"))


def pickled_scorer(folder: Path, proof: Path) -> Callable[[], Any]:
    place = clip(folder)
    (place / "model.safetensors").unlink()
    torch.save({"w": Hostile(proof)}, place / "pytorch_model.bin")
    return lambda: TransformersScorer(f"transformers:{place}", "x", "cpu", torch.float32)


def pickled_open_clip_folder(folder: Path, proof: Path) -> Callable[[], Any]:
    name = open_clip_folder(folder, CLIP)
    (folder / "open_clip_model.safetensors").unlink()
    torch.save({"w": Hostile(proof)}, folder / "open_clip_pytorch_model.bin")
    return lambda: load_open_clip(name, "cpu", torch.float32)


def pickled_checkpoint(folder: Path, proof: Path) -> Callable[[], Any]:
    know_model("nano-of-security", NANO)
    folder.mkdir()
    torch.save({"state_dict": Hostile(proof)}, folder / "epoch_1.pt")
    return lambda: load_open_clip(f"nano-of-security/{folder}/epoch_1.pt", "cpu", torch.float32)


def plain_pickle(folder: Path, proof: Path) -> Callable[[], Any]:
    know_model("nano-of-security", NANO)
    folder.mkdir()
    (folder / "epoch_1.pt").write_bytes(pickle.dumps(Hostile(proof)))
    return lambda: load_open_clip(f"nano-of-security/{folder}/epoch_1.pt", "cpu", torch.float32)


@pytest.mark.parametrize(
    "made",
    [pickled_captioner, pickled_scorer, pickled_open_clip_folder, pickled_checkpoint, plain_pickle],
)
@pytest.mark.filterwarnings("ignore")
def test_a_pickle_among_weights_runs_nothing(
    made: Callable[[Path, Path], Callable[[], Any]], tmp_path: Path
) -> None:
    proof = tmp_path / "proof"
    load = made(tmp_path / "model", proof)
    with pytest.raises(UserError, match="cannot be loaded"):
        load()
    assert not proof.exists()


def nano_settings(folder: Path, **changes: Any) -> TrainSettings:
    (folder / "nano.json").write_text(json.dumps(NANO))
    return TrainSettings(
        model=str(folder / "nano.json"), batch_size=4, samples=8, checkpoints=2, log_every=1,
        workers=0, device="cpu", **changes,
    )  # fmt: skip


def test_a_training_run_does_not_go_on_from_a_pickle(tmp_path: Path) -> None:
    """Where another put one into its directory."""
    shards = ExportedShards([str(write_pool(tmp_path / "shards", 1, 8))])
    settings, run = nano_settings(tmp_path), Run(tmp_path / "run")
    train(settings, shards, str(run.path))
    about = run.about()
    assert about is not None
    about.pop("finished")
    (run.path / "run.json").write_text(json.dumps(about))
    hostile = Hostile(tmp_path / "proof")
    torch.save({"epoch": 1, "state_dict": hostile, "optimizer": {}}, run.checkpoint)
    with pytest.raises(Exception, match="[Ww]eights"):
        train(settings, shards, str(run.path))
    assert not (tmp_path / "proof").exists()


def with_code(folder: Path, proof: Path) -> Path:
    """The folder of a model whose classes are said to stand in a file of its own."""
    (folder / "mine.py").write_text(f"import os\nos.mkdir({str(proof)!r})\n")
    names = ("AutoConfig", "AutoProcessor", "AutoModel", "AutoModelForImageTextToText",
             "AutoImageProcessor")  # fmt: skip
    for name in ("config.json", "processor_config.json", "preprocessor_config.json"):
        path = folder / name
        about = json.loads(path.read_text()) if path.exists() else {}
        kept = {k: v for k, v in about.items() if not k.endswith(("_class", "_processor_type"))}
        kept |= {"auto_map": dict.fromkeys(names, "mine.Mine"), "model_type": "mine"}
        path.write_text(json.dumps(kept))
    return folder


def test_code_in_a_model_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anybody asked whether it should be."""
    proof = tmp_path / "proof"
    folder = with_code(blip(tmp_path / "blip"), proof)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(UserError, match="custom code"):
        TransformersCaptioner(CaptionSettings(model=str(folder), device="cpu"))
    assert not proof.exists()


def test_remote_code_is_off_and_its_option_is_called_a_danger(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert CaptionSettings().trust_remote_code is False
    with pytest.raises(SystemExit):
        main(["caption", "--help"])
    assert re.search(r"--trust-remote-code\s+DANGER: runs Python code", capsys.readouterr().out)


def test_a_chat_template_stays_in_its_sandbox(tmp_path: Path) -> None:
    folder, proof = llava(tmp_path / "llava"), tmp_path / "proof"
    template = "{{ cycler.__init__.__globals__.os.mkdir('PROOF') }}<image>"
    (folder / "chat_template.jinja").write_text(template.replace("PROOF", str(proof)))
    with pytest.raises(Exception, match="unsafe"):
        TransformersCaptioner(CaptionSettings(model=str(folder), device="cpu"))
    assert not proof.exists()


# Endpoints and downloads


def said(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


class Captions(Quiet):
    """Answers as a caption server does; `reply` may be replaced."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply()

    def do_GET(self) -> None:
        self.answer(200, json.dumps({"data": [{"id": "m"}]}).encode())

    def reply(self) -> None:
        self.answer(200, said("a picture"))


class Redirecting(Captions):
    def reply(self) -> None:
        self.answer(307, b"", Location="/elsewhere")


def served_pool(folder: Path, address: str) -> tuple[jobs.Work, CaptionSettings]:
    work = jobs.open_work(str(write_pool(folder / "pool", 1, 3)), str(folder / "w"))
    settings = CaptionSettings(model=f"server:{address}/v1#m", timeout=10, retries=0, concurrency=1)
    return work, settings


def test_a_redirect_of_a_caption_server_is_not_followed(
    serving: Callable[..., Any], tmp_path: Path
) -> None:
    address, asked = serving(Redirecting)
    work, settings = served_pool(tmp_path, address)
    with pytest.raises(UserError, match="status 307"):
        jobs.caption(work, "served", settings)
    assert {path for _, path, _ in asked} == {"/v1/chat/completions"}


def test_the_servers_key_is_in_no_file_and_no_message(
    serving: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CAPMIX_SERVER_KEY", KEY)
    address, asked = serving(Captions)
    work, settings = served_pool(tmp_path, address)
    jobs.caption(work, "served", settings)
    jobs.mix(work, "synthetic", {"synthetic": "served"})
    jobs.report(work)
    jobs.export(work, "served", str(tmp_path / "out"))
    assert {headers.get("Authorization") for _, _, headers in asked} == {f"Bearer {KEY}"}
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [data for data in written if KEY.encode() in data]
    told = capsys.readouterr()
    assert KEY not in told.out + told.err


@pytest.mark.parametrize(
    "command",
    [
        "index http://me:hush@127.0.0.1:9/pool",
        "index https://hush@127.0.0.1:9/{{00000..00003}}.tar",
        "index http://127.0.0.1:9/0.tar?X-Amz-Signature=hush&part=1",
        "server http://me:hush@127.0.0.1:9/v1#m",
        "server http://127.0.0.1:9/v1?api_key=hush#m",
    ],
)
def test_an_address_with_a_secret_is_refused_and_not_shown(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, _, address = command.partition(" ")
    pool = address if kind == "index" else str(write_pool(tmp_path / "pool", 1, 1))
    model = f"server:{address}" if kind == "server" else "mini"
    work = str(tmp_path / "w")
    assert main(["caption", pool, "--work", work, "--source", "a", "--model", model]) == 2
    told = capsys.readouterr()
    assert "holds a secret" in told.err
    assert "hush" not in told.out + told.err
    assert not [path for path in tmp_path.rglob("*.json") if "hush" in path.read_text()]


def test_keys_of_s3_are_in_no_file_of_a_run(
    s3: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    s3.fs.put(str(write_pool(tmp_path / "pool", 1, 3)), f"{BUCKET}/keys", recursive=True)
    work = jobs.open_work(f"s3://{BUCKET}/keys", str(tmp_path / "w"))
    work.run(partial(null_captions, work.pool))
    jobs.mix(work, "raw")
    jobs.export(work, "raw", str(tmp_path / "out"))
    jobs.report(work)
    secret = SETTINGS["AWS_SECRET_ACCESS_KEY"]
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [data for data in written if secret.encode() in data]
    told = capsys.readouterr()
    assert secret not in told.out + told.err


TASK = next(task for task in TASKS if task.key == "cifar10")


class HostileHub(Quiet):
    """A repository with a file that climbs out of its folder."""

    names = ("classnames.txt", "../../escape.txt", "a/../../../escape.txt")

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if "/tree/" in path:
            tree = [{"type": "file", "path": n, "size": 1, "oid": "0" * 40} for n in self.names]
            self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
        elif path.startswith("/api/"):
            files = [{"rfilename": name, "size": 1} for name in self.names]
            about = {"id": TASK.hub, "sha": "0" * 40, "siblings": files, "private": False,
                     "downloads": 0, "tags": []}  # fmt: skip
            self.answer(200, json.dumps(about).encode(), Content_Type="application/json")
        else:
            self.answer(200, b"x", ETag='"1"', X_Repo_Commit="0" * 40)

    do_HEAD = do_GET  # noqa: N815


def test_names_of_a_hostile_hub_stay_in_the_sets_folder(
    serving: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    address, asked = serving(HostileHub)
    with pytest.raises(UserError, match="evalsets: "):
        fetch([TASK], str(tmp_path / "a/b/sets"), address)
    assert all(name.startswith("a/b/sets/wds_cifar10_test/") for name in files(tmp_path))
    own = (f"/api/datasets/{TASK.hub}", f"/datasets/{TASK.hub}/")
    assert asked
    assert all(path.startswith(own) for _, path, _ in asked)


# Report and view


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address that `capmix view` prints."""
    folder = tmp_path_factory.mktemp("view")
    work = jobs.open_work(str(write_pool(folder / "pool", 1, 2)), str(folder / "work"))
    work.index()
    command = [sys.executable, "-m", "capmix", "view", "--work", str(folder / "work")]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    yield server.stdout.readline().strip()
    server.terminate()
    server.wait(10)


@pytest.mark.skipif(sys.platform != "linux", reason="all of 127.0.0.0/8 is this machine")
def test_view_listens_on_one_address_of_this_machine(served: str) -> None:
    port = int(served.split(":")[2].partition("/")[0])
    socket.create_connection(("127.0.0.1", port), 5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), 5)


def test_no_other_page_may_read_frame_or_change_anything(served: str) -> None:
    other = {"Origin": "https://other.example"}
    with urllib.request.urlopen(urllib.request.Request(served, headers=other)) as answer:
        headers = dict(answer.headers)
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert headers["content-security-policy"] == "frame-ancestors 'none'"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        request = urllib.request.Request(served, method=method, headers=other)
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(request)


# Work directory


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_files_have_the_mode_that_the_umask_says(
    mask: int, file: int, folder: int, tmp_path: Path
) -> None:
    (tmp_path / "c.csv").write_text(f"uid,text\n{0:032x},x\n")
    pool = str(write_pool(tmp_path / "pool", 1, 3))
    before = os.umask(mask)
    try:
        work = jobs.open_work(pool, str(tmp_path / "w"))
        jobs.import_captions(work, [str(tmp_path / "c.csv")], "web", "uid", "text")
        jobs.mix(work, "raw")
        for form in ("webdataset", "parquet", "jsonl", "csv"):
            jobs.export(work, "raw", str(tmp_path / f"out-{form}"), form=form)  # type: ignore[arg-type]
        jobs.report(work)
    finally:
        os.umask(before)
    made = [path for top in tmp_path.iterdir() if top.name[0] in "wo" for path in top.rglob("*")]
    assert {path.stat().st_mode & 0o7777 for path in made if path.is_file()} == {file}
    assert {path.stat().st_mode & 0o7777 for path in made if path.is_dir()} == {folder}
    assert not [path for path in made if path.name.endswith(".tmp")]


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    array = np.array([Hostile(proof)], dtype=object)
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match="allow_pickle"):
        Store(str(tmp_path)).read_array("x.npy")
    assert not proof.exists()
