"""Captions from prompts with fields: counts, resume, reuse, markers."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from samples import image_bytes, sample_members, tar_bytes
from tiny_models import blip
from web_server import running

from capmix.caption.in_memory import caption_images
from capmix.caption.settings import CaptionSettings
from capmix.cli.main import main
from capmix.errors import UserError
from capmix.workspace import Workspace, open_workspace

TEXTS = ("two dogs", None, "old house", " ", "a red apple", "grass")
TEMPLATE = "[[near {field:place} ]]a {raw}"
SOURCE = "captions/s/00000"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(blip(tmp_path_factory.mktemp("blip")))


def settings(model: str, **options: Any) -> CaptionSettings:
    return CaptionSettings(model=model, max_tokens=5, **({"prompt": TEMPLATE} | options))


def write(folder: Path, texts: tuple[str | None, ...] = TEXTS, shards: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        members = [
            member
            for i, text in enumerate(texts)
            for member in sample_members(f"{shard}{i:03d}", 100 * shard + i, text, place="sea")
        ]
        (folder / f"{shard:05d}.tar").write_bytes(tar_bytes(members))
    return folder


def rows(work: Workspace, part: str = SOURCE) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = work.store.read_table(f"{part}.parquet").to_pylist()
    return found


def test_samples_without_a_required_text_are_dropped_and_counted(
    model: str, tmp_path: Path
) -> None:
    work = open_workspace(str(write(tmp_path / "p")), str(tmp_path / "w"))
    counts = work.caption("s", settings(model, captions_per_image=2))
    assert (counts.ok, dict(counts.dropped), counts.total) == (4, {"missing_text": 2}, 6)
    found = rows(work)
    assert [row["k"] for row in found] == [0, 1, None, 0, 1, None, 0, 1, 0, 1]
    assert found[2]["detail"] == "no text for --prompt in raw"
    marker = json.loads((tmp_path / f"w/.markers/{SOURCE}.json").read_text())
    assert marker["config"]["prompt"] == TEMPLATE
    assert marker["config"]["template_format"] == 1


def test_a_resumed_run_and_one_of_other_batches_write_the_same(model: str, tmp_path: Path) -> None:
    pool = str(write(tmp_path / "p", shards=2))
    whole = open_workspace(pool, str(tmp_path / "whole"))
    whole.caption("s", settings(model))
    other = open_workspace(pool, str(tmp_path / "other"))
    other.caption("s", settings(model, batch_size=1, slots=0), limit=3)
    other.caption("s", settings(model, batch_size=2, slots=2))
    for shard in ("00000", "00001"):
        assert rows(other, f"captions/s/{shard}") == rows(whole, f"captions/s/{shard}")


def test_more_captions_per_image_keep_the_earlier_ones_of_one_prompt(
    model: str, tmp_path: Path
) -> None:
    pool = str(write(tmp_path / "p"))
    work = open_workspace(pool, str(tmp_path / "w"))
    work.caption("s", settings(model))
    first = [row["text"] for row in rows(work) if row["status"] == "ok"]
    work.caption("s", settings(model, captions_per_image=2))
    found = [row for row in rows(work) if row["status"] == "ok"]
    assert [row["text"] for row in found if row["k"] == 0] == first
    several = settings(model, prompt=["a {raw}", "a"])
    work.caption("t", several)
    with pytest.raises(UserError, match="different settings"):
        work.caption("t", several.model_copy(update={"captions_per_image": 2}))


class Echo(BaseHTTPRequestHandler):
    """A caption server that answers with the prompt."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"][1]["text"]
        data = json.dumps({"choices": [{"message": {"content": f"seen: {text}"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def test_an_edited_text_changes_its_caption_as_in_a_fresh_run(tmp_path: Path) -> None:
    pool, http = write(tmp_path / "p"), ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    with running(http):
        model = f"server:http://127.0.0.1:{http.server_address[1]}/v1#m"
        work = open_workspace(str(pool), str(tmp_path / "w"))
        work.caption("s", settings(model))
        before = rows(work)
        write(pool, ("green sky", *TEXTS[1:]))
        work = open_workspace(str(pool), str(tmp_path / "w"))
        work.caption("s", settings(model))
        after = rows(work)
        assert [before[0]["text"], after[0]["text"]] == [
            "seen: near sea a two dogs", "seen: near sea a green sky",
        ]  # fmt: skip
        assert after[1:] == before[1:]
        fresh = open_workspace(str(pool), str(tmp_path / "fresh"))
        fresh.caption("s", settings(model))
        assert rows(fresh) == after


def test_the_command_takes_several_prompts(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool, work = str(write(tmp_path / "p")), str(tmp_path / "w")
    common = ["caption", pool, "--work", work, "--source", "s", "--model", model]
    common += ["--max-tokens", "4"]
    assert main([*common, "--prompt", "- a red[[ {raw}]]", "--prompt", "two dogs"]) == 0
    found = rows(open_workspace(pool, work))
    assert [row["k"] for row in found] == [0, 1] * len(TEXTS)
    capsys.readouterr()
    assert main([*common, "--prompt", "a {blip2}"]) == 2
    assert "{blip2}: captioners have the fields {raw}" in capsys.readouterr().err


def test_images_in_memory_have_no_texts(model: str) -> None:
    with pytest.raises(UserError, match=r"images in memory have no raw; put .* into \[\[ \]\]"):
        caption_images([image_bytes(1)], settings(model))
    several = settings(model, prompt=["a red[[ {raw}]]", "a red"], temperature=0.0)
    ((one, two),) = caption_images([image_bytes(1)], several)
    assert one == two
