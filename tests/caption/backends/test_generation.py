"""Generation configs of real architectures; compared with `generate` of an unchanged model."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from samples import image_bytes
from tiny_models import blip2, florence2, llava, plain_model

from capmix.caption.backends.transformers import TransformersCaptioner
from capmix.caption.captioner import Caption
from capmix.caption.settings import CaptionSettings
from capmix.pool import Sample

COUNT = 12
RULES = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "forced_eos_token_id": 2}


def changed(folder: Path, name: str, **values: Any) -> None:
    """Change a JSON file of a model folder; names with dots are nested."""
    about = json.loads((folder / name).read_text())
    for key, value in values.items():
        part = about
        *path, last = key.split("__")
        for step in path:
            part = part[step]
        part[last] = value
    (folder / name).write_text(json.dumps(about))


def captions(folder: Path, **settings: Any) -> tuple[list[Caption], TransformersCaptioner]:
    one = TransformersCaptioner(CaptionSettings(model=str(folder), **settings))
    prepared = [one.prepare(Sample("", "", image_bytes(i), "jpg", None)) for i in range(COUNT)]
    uids = [str(i) for i in range(COUNT)]
    return [found[0] for found in one.caption(prepared, uids, "s")], one


def by_generate(
    folder: Path, one: TransformersCaptioner, limit: int, end: int = 2, **options: Any
) -> list[str]:
    plain, found = plain_model(folder), []
    for i in range(COUNT):
        inputs = one._collate([one.prepare(Sample("", "", image_bytes(i), "jpg", None))])
        tokens = plain.generate(**inputs, do_sample=False, max_new_tokens=limit, **options)[0]
        is_decoder = "input_ids" in inputs and one.model.config.model_type != "florence2"
        start = inputs["input_ids"].shape[1] if is_decoder else 1
        own = [token for token in tokens[start:].tolist() if token != end]
        found.append(one.tokenizer.decode(own, skip_special_tokens=True).strip())
    return found


def test_a_caption_ends_where_generate_ends_it(tmp_path: Path) -> None:
    """A word of the captions becomes the end token: the tokenizer's is then one like any other."""
    folder = blip2(tmp_path / "m")
    before, one = captions(folder, temperature=0, min_tokens=0, max_tokens=12)
    words = Counter(word for caption in before for word in set(caption.text.split()[2:]))
    end = one.tokenizer.convert_tokens_to_ids(words.most_common()[-1][0])
    changed(folder, "config.json", text_config__eos_token_id=end)
    changed(folder, "generation_config.json", eos_token_id=[end, 9])
    found, one = captions(folder, temperature=0, min_tokens=0, max_tokens=12)
    assert [caption.text for caption in found] == by_generate(folder, one, 12, end)
    assert "stop" in {caption.finish for caption in found}


def test_greedy_follows_the_rules_of_the_generation_config(tmp_path: Path) -> None:
    for build in (florence2, llava):
        folder = build(tmp_path / build.__name__)
        changed(folder, "generation_config.json", **RULES)
        found, one = captions(folder, temperature=0, min_tokens=0, max_tokens=10)
        assert [caption.text for caption in found] == by_generate(folder, one, 10, num_beams=1)
        assert one.settings["generation"] == RULES
        assert all(caption.finish == "stop" for caption in found)  # the last token is forced


def test_plain_sampling_ignores_the_rules(tmp_path: Path) -> None:
    folder = llava(tmp_path / "m")
    plain, one = captions(folder, max_tokens=8)
    changed(folder, "generation_config.json", **RULES)
    ruled, _ = captions(folder, max_tokens=8)
    ignored, other = captions(folder, max_tokens=8, plain_sampling=True)
    assert plain == ignored != ruled
    assert "generation" not in one.settings.keys() | other.settings.keys()
