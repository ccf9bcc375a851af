"""Probes on saved embeddings of another encoder, and the transformer text side."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colour_world import MODEL, open_world, write_world
from torch.nn import functional

from capmix.errors import UserError
from capmix.mini.text_tower import text_tower
from capmix.probe import texts
from capmix.probe.fit import FitSettings, load_probe, load_training_set, train_probes
from capmix.probe.images import saved_images
from capmix.probe.settings import ProbeSettings
from capmix.probe.towers import Towers, make_towers
from capmix.probe.transformer import TransformerTexts
from capmix.report.gather import gather
from capmix.score.settings import ScoreSettings
from capmix.workspace import Workspace

QUICK = FitSettings(steps=12, batch_size=64)
LENGTH = 12


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("towers"))


@pytest.fixture(scope="module")
def work(world: Path) -> Workspace:
    opened = open_world(world)
    opened.mix("raw-top", fraction=0.4, scorer="imported", out="good")
    return opened


@pytest.fixture(scope="module")
def colours(work: Workspace) -> Towers:
    return Towers(saved_images(work.store, "colours"))


def options(world: Path, **given: Any) -> dict[str, Any]:
    known = {"subsets": ["good"], "seeds": [0], "evalsets": [str(world / "colours")]}
    return known | {"embeddings": "colours", "model": MODEL, "steps": 60} | given


def test_a_probe_equals_a_plain_torch_loop(work: Workspace, colours: Towers) -> None:
    """The loop reads the embeddings and texts itself."""
    (name,) = train_probes(work.store, "good", [3], colours, QUICK)
    rows = work.subset("good").table().to_pylist()
    vectors: dict[str, np.ndarray] = {}
    for shard in ("00000", "00001"):
        part = f"embeddings/colours/image/{shard}"
        uids = work.store.read_table(f"{part}.parquet")["uid"].to_pylist()
        vectors |= dict(zip(uids, work.store.read_array(f"{part}.npy"), strict=True))
    images = torch.tensor(np.stack([vectors[row["uid"]] for row in rows]).astype(np.float32))
    images = functional.normalize(images, dim=1)
    words = torch.tensor(text_tower().encode([row["text"] for row in rows]))
    generator = torch.Generator().manual_seed(3)
    first = torch.nn.Parameter(torch.randn((16, 256), generator=generator) / math.sqrt(16))
    second = torch.nn.Parameter(torch.randn((256, 256), generator=generator) / math.sqrt(256))
    scale = torch.nn.Parameter(torch.tensor(math.log(5.0)))
    optimizer = torch.optim.AdamW(
        [{"params": [first, second], "weight_decay": 0.1}, {"params": [scale], "weight_decay": 0}],
        lr=1e-3,
    )
    order: list[int] = []
    for step in range(12):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 + math.cos(math.pi * step / 12)) / 2
        if len(order) < 64:
            order = torch.randperm(len(rows), generator=generator).tolist()
            order = order[: len(rows) // 64 * 64]
        batch, order = order[:64], order[64:]
        a = functional.normalize(images[batch] @ first, dim=1)
        b = functional.normalize(words[batch] @ second, dim=1)
        logits = scale.exp() * a @ b.T
        own = torch.arange(64)
        loss = (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = load_probe(work.store, name, colours)
    assert np.allclose(found.image_projection, first.detach().numpy(), atol=1e-5)
    assert np.allclose(found.text_weights["text_projection"], second.detach().numpy(), atol=1e-5)


def test_the_transformer_equals_torchs_layer() -> None:
    side = TransformerTexts(context=LENGTH, width=64)
    weights = {k: w.detach() for k, w in side.start(24, torch.Generator().manual_seed(0)).items()}
    for name in weights:  # biases start as zeros, scales as ones
        if weights[name].ndim == 1:
            weights[name] = torch.randn(weights[name].shape, generator=torch.Generator())
    layer = torch.nn.TransformerEncoderLayer(
        64, 2, 256, 0.0, functional.gelu, batch_first=True, norm_first=True
    )
    final = torch.nn.LayerNorm(64)
    names = {
        "self_attn.in_proj_weight": "text_attention",
        "self_attn.out_proj.weight": "text_attention_out",
        "linear1.weight": "text_up",
        "linear2.weight": "text_down",
    }
    state = {ours: weights[theirs].T for ours, theirs in names.items()}
    state |= {one.replace("weight", "bias"): weights[f"{two}_bias"] for one, two in names.items()}
    for number in (1, 2):
        state[f"norm{number}.weight"] = weights[f"text_norm{number}_scale"]
        state[f"norm{number}.bias"] = weights[f"text_norm{number}_shift"]
    layer.load_state_dict(state)
    final.load_state_dict(
        {"weight": weights["text_norm3_scale"], "bias": weights["text_norm3_shift"]}
    )
    prepared = side.prepare(["a red thing", "", "one two three four five six seven " * 5])
    ids = torch.tensor(prepared, dtype=torch.long)
    x = weights["text_token"][ids] + weights["text_position"]
    states = final(layer(x, src_key_padding_mask=ids == 0))
    lengths = [int((row != 0).sum()) for row in ids]
    assert lengths[1:] == [1, LENGTH]
    means = torch.stack([states[row, :n].mean(dim=0) for row, n in enumerate(lengths)])
    expected = means @ weights["text_projection"]
    found = side.encode(weights, prepared)
    assert torch.allclose(found, expected, atol=1e-5)
    alone = side.encode(weights, prepared[:1])
    assert torch.allclose(alone, found[:1], atol=1e-5)


def test_a_transformer_learns_the_colours_and_depends_only_on_the_seed(
    work: Workspace, world: Path
) -> None:
    given = options(world, text="transformer", width=32, context=8, batch_size=64)
    (first,) = work.probe(**given)["good"]
    assert first.part == "probe_results/good/colours.transformer/seed0"
    assert first.metrics["colours"]["acc1"] > 0.6
    place = "probes/good/colours.transformer/seed0"
    before = Path(work.store.path(f"{place}.safetensors")).read_bytes()
    marker = work.store.read_marker(place)
    assert marker is not None
    assert marker.config["text"] == "transformer"
    assert marker.extra["losses"][-1] < marker.extra["losses"][0] - 0.5
    work.store.fs.rm(work.store.path(f".markers/{place}.json"))
    (again,) = work.probe(**given)["good"]
    assert Path(work.store.path(f"{place}.safetensors")).read_bytes() == before
    assert np.array_equal(again.hits["colours/acc1"], first.hits["colours/acc1"])


def test_features_of_evaluation_sets_are_kept_and_belong_to_the_model(
    work: Workspace, world: Path
) -> None:
    (first,) = work.probe(**options(world))["good"]
    assert first.metrics["colours"]["acc1"] > 0.9
    without = options(world, model="")
    assert work.probe(**without)["good"][0].metrics == first.metrics
    other = shutil.copytree(world / "colours", world / "copies")
    (other / "classnames.txt").write_text("\n".join(sorted(one.name for one in other.iterdir())))
    with pytest.raises(UserError, match="no features of colours yet; pass --model"):
        work.probe(**without | {"evalsets": [str(other)]})
    wrong = {"evalsets": [str(other)], "model": "colour_world:OtherWeights"}
    with pytest.raises(UserError, match="are not those in embeddings/colours"):
        work.probe(**options(world) | wrong)


def test_results_and_report_keep_towers_apart(work: Workspace, world: Path) -> None:
    work.probe(**options(world, seeds=[0, 1]))
    work.probe(**options(world, text="transformer", width=32, context=8, batch_size=64))
    rows = [row for row in work.results().to_pylist() if row["subset"] == "good"]
    assert {row["of"] for row in rows} == {"probe colours.words", "probe colours.transformer"}
    assert all(0 <= row["colours/acc1"] <= 1 for row in rows)
    found = gather(work.catalog, "imported", None, None)
    assert [one.part for one in found.probes["good"]] == [
        f"probe_results/good/colours.words/seed{seed}" for seed in (0, 1)
    ]
    assert any("trained on colours.transformer; the others on colours.words" in note
               for note in found.notes)  # fmt: skip
    cleaned = work.clean(subsets="good")
    files = " ".join(file for one in cleaned.removals for file in one.files)
    assert "probes/good/colours.words/seed1" in files


def test_absent_embeddings_are_named_with_the_command(work: Workspace, colours: Towers) -> None:
    with pytest.raises(UserError, match=r"found colours\); run `capmix score --save-embeddings"):
        make_towers(work.store, ProbeSettings(embeddings="vit-l-14"))
    marker = work.store.path(".markers/embeddings/colours/image/00001.json")
    data = Path(marker).read_bytes()
    Path(marker).unlink()
    try:
        with pytest.raises(UserError, match="no embeddings of shard 00001; run `capmix score"):
            load_training_set(work.store, "good", colours)
    finally:
        Path(marker).write_bytes(data)
    changed = replace(colours, images=replace(colours.images, config={"weights": "3"}))
    with pytest.raises(UserError, match="embedded with other settings"):
        load_training_set(work.store, "good", changed)


def test_features_of_other_dimensions_are_refused(work: Workspace, world: Path) -> None:
    work.probe(**options(world))
    part = "evalsets/colours/colours"
    marker = work.store.read_marker(part)
    assert marker is not None
    with work.store.draft(part) as draft:
        draft.write_array(f"{part}.npy", np.ones((96, 5), np.float16))
        draft.commit(replace(marker, files={}))
    shutil.rmtree(work.store.path("probe_results/good"))
    with pytest.raises(UserError, match="colours: features of 5 dimensions, but .* trained on 16"):
        work.probe(**options(world, model=""))
    work.store.fs.rm(work.store.path(f".markers/{part}.json"))


def test_a_wrong_tokenizer_is_refused(tmp_path: Path, work: Workspace) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer.json"):
        TransformerTexts(tokenizer=str(tmp_path / "tokenizer.json")).prepare(["x"])
    with pytest.raises(UserError, match="--tokenizer .*none.json"):
        _ = TransformerTexts(tokenizer=str(tmp_path / "none.json")).digest
    with pytest.raises(UserError, match="--width 40: expected a multiple of 32"):
        TransformerTexts(width=40)
    with pytest.raises(UserError, match="--tokenizer needs --text transformer"):
        make_towers(work.store, ProbeSettings(embeddings="colours", tokenizer="x"))


def test_texts_are_encoded_in_parts_with_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [f"a {word} thing {'very ' * (word % 7)}" for word in range(50)]
    whole = text_tower().encode(some)
    monkeypatch.setattr(texts, "TEXTS_AT_ONCE", 8)
    assert np.array_equal(texts.WordTexts().prepare(some), whole)


def test_the_model_names_the_embeddings(work: Workspace) -> None:
    assert ScoreSettings(model=MODEL).name != "colours"
    assert make_towers(work.store, ProbeSettings(model=MODEL)).images.name == "colours"
    with pytest.raises(UserError, match="--embeddings others: not in .*found colours"):
        make_towers(work.store, ProbeSettings(model="colour_world:OtherName"))
    assert make_towers(work.store, ProbeSettings()).variant == ""
    assert make_towers(work.store, ProbeSettings(embeddings="mini")).images.is_embedded
