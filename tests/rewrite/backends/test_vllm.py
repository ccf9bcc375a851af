"""The prompts and checks of `vllm:` rewriters; the marked test needs vLLM (`make test-vllm`)."""

from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tiny_text_models import BUILDERS, chat, llama
from transformers import AutoTokenizer

from capmix.caption.backends.vllm import model_processor
from capmix.engine.batches import SampleError
from capmix.errors import UserError
from capmix.prompts.escape import Escape
from capmix.rewrite.backends.transformers import TransformersRewriter, input_tokens
from capmix.rewrite.backends.vllm import VllmRewriter
from capmix.rewrite.rewriter import TextRequest
from capmix.rewrite.rewriters import make_rewriter
from capmix.rewrite.settings import RewriteSettings

TEXT = "a red apple on the table"


def test_without_vllm_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "vllm" else find_spec(name, package)

    monkeypatch.setattr("capmix.models.registry.find_spec", found)
    model = "capmix.rewrite.backends.vllm:VllmRewriter"
    with pytest.raises(UserError) as error:
        make_rewriter(RewriteSettings(model=model), "s")
    assert str(error.value) == f"--model {model} needs vllm: pip install 'capmix[vllm]'"


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("vllm:", {}, "rewriter vllm: expected vllm:ID"),
        ("vllm:./nothing", {}, "rewriter vllm:./nothing: no such folder"),
        ("vllm:m", {"device": "cuda:1"}, "rewriter vllm:m: --device cuda:1.*CUDA_VISIBLE_DEVICES"),
        ("vllm:m", {"temperature": 2.5}, "--temperature 2.5: vLLM accepts 0 to 2"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(
    model: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        VllmRewriter.check(RewriteSettings(model=model, **options))


@pytest.mark.parametrize("name", ["llama", "chat"])
def test_the_tokenizer_is_found_and_gives_the_tokens_of_a_plain_prompt(
    tmp_path: Path, name: str
) -> None:
    folder = BUILDERS[name](tmp_path / name)
    settings = RewriteSettings(model=f"vllm:{folder}", prompt="{raw}")
    found = model_processor(settings.as_captioning(str(folder)), str(folder), "rewriter")
    is_chat = bool(found.chat_template)
    assert is_chat == (name == "chat")
    ids = input_tokens(found, TEXT, settings, Escape(), is_chat, None)
    plain = AutoTokenizer.from_pretrained(folder)
    if is_chat:
        message = [{"role": "user", "content": TEXT}]
        expected = plain.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
    else:
        expected = plain(TEXT)
    assert list(ids) == expected["input_ids"]


def test_an_input_that_leaves_no_room_for_the_text_fails_alone(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama(tmp_path / "llama"))
    settings = RewriteSettings(model="m", prompt="{raw}")
    with pytest.raises(SampleError, match="has room for 3"):
        input_tokens(tokenizer, TEXT, settings, Escape(), False, 3)


@pytest.mark.vllm
def test_greedy_texts_are_those_of_transformers(tmp_path: Path) -> None:
    folder = chat(tmp_path / "chat")
    options: dict[str, Any] = {"prompt": "{raw}", "max_tokens": 8, "dtype": "float32"}
    requests = [TextRequest(f"u{i}", (TEXT[: 8 + 4 * i],), "s") for i in range(4)]
    found = []
    for model in (f"vllm:{folder}", str(folder)):
        one = make_rewriter(RewriteSettings(model=model, **options), "s")
        found.append(one.rewrite([one.prepare(each) for each in requests], requests))
    assert found[0] == found[1]
    assert isinstance(one, TransformersRewriter)
