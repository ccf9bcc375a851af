"""Compare scores with plain open_clip: one image, one text and the full context at a time."""

import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import sample_members, tar_bytes
from tiny_clip import CLIP, COCA, open_clip_folder
from web_texts import alt_texts

from capmix.errors import UserError
from capmix.models.image_pass import embed_stage
from capmix.models.images import decode_image
from capmix.models.tokens import encode_texts
from capmix.pool import Sample
from capmix.score.backends.open_clip import (
    TEXT_BATCH,
    OpenClipScorer,
    _encode,
    _lengths,
    load_open_clip,
)
from capmix.score.settings import ScoreSettings
from capmix.score.stage import ImagePass, fresh_score_stage
from capmix.storage.compare import same_settings
from capmix.workspace import Workspace, open_workspace

TEXTS = [
    "a cat",
    "two dogs in the grass",
    "word " * 200,
    "\x00 \ud800".encode("utf-8", "replace").decode(),
]


@pytest.fixture(scope="module", params=["clip", "coca"])
def name(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    config = {"clip": CLIP, "coca": COCA}[request.param]
    return open_clip_folder(tmp_path_factory.mktemp(request.param), config)


def pool_with(folder: Path, texts: list[str]) -> str:
    members = [m for i, text in enumerate(texts) for m in sample_members(f"k{i}", i, text)]
    folder.mkdir()
    (folder / "00000.tar").write_bytes(tar_bytes(members))
    return str(folder)


def plain_scores(name: str, work: Workspace) -> list[float]:
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    model.eval()
    scores = []
    with torch.inference_mode():
        for sample in work.pool.read(work.pool.shards[0]):
            assert isinstance(sample, Sample)
            pixels = preprocess(decode_image(sample.image)).unsqueeze(0)
            image = model.encode_image(pixels, normalize=True)
            text = model.encode_text(tokenizer([sample.text]), normalize=True)
            scores.append(float((image * text).sum()))
    return scores


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("save", [False, True])
def test_scores_equal_plain_open_clip(name: str, save: bool, exact: bool, tmp_path: Path) -> None:
    work = open_workspace(pool_with(tmp_path / "p", TEXTS), str(tmp_path / "w"))
    settings = ScoreSettings(model=name, sources=["raw"], save_embeddings=save, exact_decode=exact)
    work.score(settings)
    table = work.store.read_table(f"scores/{settings.name}/raw/00000.parquet")
    found = np.array(table.column("score").to_pylist())
    # Saved embeddings are float16: 11 bits, so about 2e-4 per coordinate.
    bound = 1e-5 if exact else 1e-4
    assert np.abs(found - plain_scores(name, work)).max() < (5e-4 if save else bound)
    assert table.column("truncated").to_pylist() == [False, False, True, False]
    assert work.store.parts("embeddings") == ([f"embeddings/{settings.name}/image/00000"] * save)


def test_vectors_have_the_bits_of_open_clips_own_ids(name: str) -> None:
    """The batches are those of open_clip's ids, sorted by length and trimmed."""
    scorer = OpenClipScorer(ScoreSettings(model=name, device="cpu", dtype="float32"))
    texts = [*alt_texts(300, seed=5), *alt_texts(20, seed=5)]
    unique = list(dict.fromkeys(texts))
    model, tokens = scorer._model, open_clip.get_tokenizer(name)(unique)
    wanted = np.empty((len(unique), scorer.encoder.dimensions), np.float32)
    lengths = _lengths(model, tokens)
    with torch.inference_mode():
        for rows in torch.split(torch.argsort(lengths, stable=True), TEXT_BATCH):
            batch = tokens[rows][:, : int(lengths[rows].max())]
            wanted[rows.numpy()] = _encode(model, batch).numpy()
    position = {text: row for row, text in enumerate(unique)}
    assert len(texts) > len(unique) > TEXT_BATCH
    assert (encode_texts(scorer, texts) == wanted[[position[text] for text in texts]]).all()


def test_a_later_source_reads_no_image_again(name: str, tmp_path: Path) -> None:
    pool = pool_with(tmp_path / "p", TEXTS)
    work = open_workspace(pool, str(tmp_path / "w"))
    settings = ScoreSettings(model=name, sources=["raw"], save_embeddings=True)
    work.score(settings)
    embedded = work.store.path(f"embeddings/{settings.name}/image/00000.npy")
    before = Path(embedded).stat().st_mtime_ns
    work.caption("mini", model="mini")
    work.score(settings.model_copy(update={"sources": ["raw", "mini"]}))
    assert Path(embedded).stat().st_mtime_ns == before
    assert work.catalog.scored(settings.name) == ["raw", "mini"]


def test_saved_embeddings_follow_the_weights_of_a_local_model(name: str, tmp_path: Path) -> None:
    """Those of an older capmix, which recorded no digest, stay."""
    folder = tmp_path / "model"
    shutil.copytree(name.removeprefix("local-dir:"), folder)
    pool = pool_with(tmp_path / "p", TEXTS)
    settings = ScoreSettings(model=f"local-dir:{folder}", sources=["raw"], save_embeddings=True)
    work = open_workspace(pool, str(tmp_path / "w"))
    work.score(settings)
    stage = embed_stage(work.pool, OpenClipScorer(settings).encoder)
    of_older = {key: value for key, value in stage.config.items() if key != "weights"}
    assert len(stage.config["weights"]) == 16
    assert same_settings(of_older, stage.config, stage.defaults)
    file = folder / "open_clip_model.safetensors"
    save_file({key: value * 1.5 for key, value in load_file(file).items()}, file)
    work.score(settings)
    fresh = open_workspace(pool, str(tmp_path / "fresh"))
    fresh.score(settings)
    part = f"scores/{settings.name}/raw/00000.parquet"
    assert work.store.read_table(part).equals(fresh.store.read_table(part))


def test_one_image_pass_serves_every_source(name: str, tmp_path: Path) -> None:
    work = open_workspace(pool_with(tmp_path / "p", TEXTS), str(tmp_path / "w"))
    work.caption("mini", model="mini")
    seen = []
    scorer = OpenClipScorer(ScoreSettings(model=name, device="cpu", dtype="float32"))
    scorer.encoder._model.visual.register_forward_hook(lambda *_: seen.append(1))
    images = ImagePass(work.pool, scorer)
    sources = ("raw", "mini")
    work.run(lambda: [fresh_score_stage(work.store, scorer, one, images) for one in sources])
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("ViT-L-14/openai", "use ViT-L-14-quickgelu/openai"),
        ("ViT-B-32-quickgelu/laion2b_s34b_b79k", "neither a pretrained tag"),
        ("ViT-B-32/nope", "laion2b_s34b_b79k"),
        ("ViT-Z/openai", "no architecture 'ViT-Z'"),
        ("local-dir:/nowhere", "cannot be loaded"),
    ],
)
def test_names_that_do_not_fit_are_one_clear_line(model: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_open_clip(model, "cpu", torch.float32)
