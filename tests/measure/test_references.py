import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from parts import SCORER, HandMade, Made, fresh_folder

from capmix.errors import UserError
from capmix.measure.population import Population
from capmix.measure.references import (
    clip_score,
    has_java,
    load_references,
    measure_references,
    ref_clip_score,
    text_metrics,
)
from capmix.measure.settings import MeasureSettings
from capmix.models.tokens import Tokens

CANDIDATES = ["a brown dog runs on the beach", "two people on a red bus", "a cat"]
REFERENCES = [
    ["a dog runs along a sandy beach", "the brown dog is running on the beach"],
    ["two people ride a red bus", "people sitting in a bus"],
    ["an orange kitten sleeps on a sofa", "a sleeping cat"],
]


def plain_cider(candidates: list[str], references: list[list[str]]) -> float:
    """CIDEr of Vedantam et al. 2015, with the Gaussian length penalty (sigma 6) of COCO's code."""

    def grams(text: str) -> Counter:
        words = text.split()
        return Counter(
            tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1)
        )

    seen = Counter(g for of_image in references for g in {x for r in of_image for x in grams(r)})
    images = math.log(len(references))

    def vectors(text: str) -> list[dict]:
        counts = grams(text)
        return [
            {g: c * (images - math.log(max(1, seen[g]))) for g, c in counts.items() if len(g) == n}
            for n in range(1, 5)
        ]

    def length(vector: dict) -> float:
        return math.sqrt(sum(v * v for v in vector.values()))

    scores = []
    for candidate, of_image in zip(candidates, references, strict=True):
        value = 0.0
        for reference in of_image:
            # COCO's code uses the number of bigrams as the length of a text.
            difference = len(candidate.split()) - len(reference.split())
            penalty = math.exp(-(difference**2) / (2 * 6.0**2))
            for a, b in zip(vectors(candidate), vectors(reference), strict=True):
                norm = length(a) * length(b)
                common = sum(min(v, b[g]) * b[g] for g, v in a.items() if g in b)
                value += penalty * (common / norm if norm else 0.0) / 4
        scores.append(10 * value / len(of_image))
    return sum(scores) / len(scores)


def test_cider_equals_a_plain_computation() -> None:
    found = text_metrics(CANDIDATES, REFERENCES, java=False)
    assert found["CIDEr"] == pytest.approx(plain_cider(CANDIDATES, REFERENCES), abs=1e-6)
    assert found["METEOR"] is None


@pytest.mark.skipif(not has_java(), reason="pycocoevalcap's tokeniser needs Java")
@pytest.mark.slow
def test_metrics_are_pycocoevalcaps() -> None:
    """Texts have punctuation and capitals and pass through pycocoevalcap's own tokenizer."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    candidates = ["A Dog's bone, on the (wet) beach.", "Two people... don't ride", "a cat"]
    tokenizer = PTBTokenizer()
    truth = tokenizer.tokenize(
        {i: [{"caption": text} for text in texts] for i, texts in enumerate(REFERENCES)}
    )
    result = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(candidates)})
    found = text_metrics(candidates, REFERENCES)
    assert found["CIDEr"] == pytest.approx(Cider().compute_score(truth, result)[0], abs=1e-6)
    assert found["BLEU-4"] == pytest.approx(
        Bleu(4).compute_score(truth, result, verbose=0)[0][3], abs=1e-6
    )
    assert found["ROUGE-L"] == pytest.approx(Rouge().compute_score(truth, result)[0], abs=1e-6)
    assert found["METEOR"] == pytest.approx(Meteor().compute_score(truth, result)[0], abs=1e-6)


def test_clip_scores_are_their_definition() -> None:
    similarity = np.array([0.3, -0.1, 0.2])
    assert clip_score(similarity).tolist() == pytest.approx([0.75, 0.0, 0.5])
    closest = np.array([0.8, 0.9, -0.2])
    assert ref_clip_score(similarity, closest).tolist() == pytest.approx(
        [2 * 0.75 * 0.8 / (0.75 + 0.8), 0.0, 0.0]
    )


def coco(path: Path) -> str:
    images = [{"id": 7, "file_name": "train/000000000001.jpg"}, {"id": 8, "file_name": "b.jpg"}]
    captions = [
        {"image_id": 7, "caption": REFERENCES[0][0]},
        {"image_id": 7, "caption": REFERENCES[0][1]},
        {"image_id": 8, "caption": REFERENCES[1][0]},
        {"image_id": 9, "caption": "of an image without a name"},
    ]
    path.write_text(json.dumps({"images": images, "annotations": captions}))
    return str(path)


def test_references_are_found_by_name_and_by_id(tmp_path: Path) -> None:
    found = load_references(coco(tmp_path / "c.json"))
    assert found["000000000001"] == found["7"] == REFERENCES[0]
    assert found["b"] == [REFERENCES[1][0]]
    assert found["9"] == ["of an image without a name"]


@pytest.mark.parametrize("text", ["[]", "{", '{"annotations": [{"caption": "x"}]}', "7"])
def test_another_file_is_one_clear_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(UserError, match=r"--references .*c\.json: "):
        load_references(str(tmp_path / "c.json"))


class Letters:
    """A text tower that counts letters: unit vectors of 26 dimensions."""

    name = SCORER

    def tokenize(self, texts: list[str]) -> Tokens:
        return Tokens(texts, [False] * len(texts))

    def encode_tokens(self, inputs: list[str]) -> np.ndarray:
        counts = np.array([[text.count(chr(97 + i)) for i in range(26)] for text in inputs], float)
        return (counts / np.linalg.norm(counts, axis=1, keepdims=True)).astype(np.float32)


def population(here: HandMade) -> Population:
    sources = ["raw", *here.captioned]
    return Population(here.store, here.pool, SCORER, sources, sources, MeasureSettings())  # type: ignore[arg-type]


def test_samples_with_references_are_measured(tmp_path: Path) -> None:
    made = [
        Made("000000000001", "dogs for sale", 0.1, {"mini": [CANDIDATES[0]]}, {"mini": [0.3]}),
        Made("b", None, None, {"mini": [CANDIDATES[1]]}, {"mini": [-0.2]}),
        Made("nobody", "x", 0.5, {"mini": ["y"]}, {"mini": [0.5]}),
    ]
    here = HandMade(fresh_folder(), {"00000": made})
    file = coco(tmp_path / "c.json")
    found = measure_references(population(here), file, java=False, scorer=Letters())  # type: ignore[arg-type]
    assert found["images"] == 2
    mini = found["sources"]["mini"]
    wanted = plain_cider(CANDIDATES[:2], [REFERENCES[0], REFERENCES[1][:1]])
    assert mini["CIDEr"] == pytest.approx(wanted, abs=1e-6)
    assert mini["CLIPScore"] == pytest.approx((2.5 * 0.3 + 0) / 2)
    vectors = Letters().encode_tokens([CANDIDATES[0], *REFERENCES[0]])
    closest = max(float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2]))
    mean = 2 * 0.75 * closest / (0.75 + closest)
    assert mini["RefCLIPScore"] == pytest.approx(mean / 2, abs=1e-6)
    assert found["sources"]["raw"]["captions"] == 1
    assert found["tokens"] == "words in lower case"


def test_a_source_can_be_the_reference_and_nobody_elses_is_refused(tmp_path: Path) -> None:
    made = [Made("a" * 8, "a cat", 0.1, {"mini": ["a cat"], "human": ["a sleeping cat"]}, {})]
    here = HandMade(fresh_folder(), {"00000": made})
    found = measure_references(population(here), "source:human", java=False)
    assert set(found["sources"]) == {"raw", "mini"}
    with pytest.raises(UserError, match="no such source"):
        measure_references(population(here), "source:nobody")
    with pytest.raises(UserError, match="no sample of the pool has a reference"):
        measure_references(population(here), coco(tmp_path / "c.json"))
