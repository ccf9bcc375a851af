"""Backends are found by name, also those of other packages; a missing one is a one-line error."""

import sys
from pathlib import Path

import pytest
from samples import write_pool

from capmix.caption.backends.field import FieldCaptioner
from capmix.caption.backends.mini import MiniCaptioner
from capmix.caption.backends.open_clip import CocaCaptioner
from capmix.caption.backends.server import ServerCaptioner
from capmix.caption.backends.transformers import TransformersCaptioner
from capmix.caption.captioners import make_captioner
from capmix.caption.settings import CaptionSettings
from capmix.cli.main import main
from capmix.errors import UserError
from capmix.models.registry import (
    CAPTIONERS,
    SCORERS,
    backends,
    find_backend,
    missing_module,
    require,
)
from capmix.score.backends.open_clip import OpenClipScorer
from capmix.score.scorers import make_scorer
from capmix.score.settings import ScoreSettings

MINE = """
from capmix.caption.captioner import Caption


class Mine:
    packages = ()
    device = "cpu"
    batch_size, workers = 4, 1

    def __init__(self, settings, source):
        self.settings = {"model": "mine", "seed": settings.seed}

    def prepare(self, sample):
        return sample.key

    def caption(self, prepared, uids, source):
        return [[Caption(f"{source} of {key}")] for key in prepared]


class Needy(Mine):
    packages = ("no_such_module",)
    extra = None
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_captioners.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_captioners"
    sys.modules.pop("my_captioners", None)


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("mini", MiniCaptioner),
        ("field:tags", FieldCaptioner),
        ("server:http://127.0.0.1:1/v1", ServerCaptioner),
        ("open_clip:coca_ViT-B-32/x", CocaCaptioner),
        ("Salesforce/blip2-opt-2.7b", TransformersCaptioner),
        ("transformers:Salesforce/blip2-opt-2.7b", TransformersCaptioner),
        ("/models/blip", TransformersCaptioner),
        ("./a:b", TransformersCaptioner),
        ("run:RUNS/a", CocaCaptioner),
        ("run:a", CocaCaptioner),
        ("run", TransformersCaptioner),
    ],
)
def test_captioners_by_name(model: str, found: type) -> None:
    assert find_backend(CAPTIONERS, model) is found


@pytest.mark.parametrize(
    "model", ["ViT-B-32/openai", "local-dir:/x", "hf-hub:a/b", "run:a", "a.json/b.pt"]
)
def test_scorers_by_name(model: str) -> None:
    assert find_backend(SCORERS, model) is OpenClipScorer


def test_built_in_backends_are_entry_points_like_any_other() -> None:
    assert set(backends(CAPTIONERS)) >= {"field", "mini", "open_clip", "server", "transformers"}
    assert set(backends(SCORERS)) >= {"mini", "open_clip", "transformers"}
    for group in (CAPTIONERS, SCORERS):
        for name in backends(group):
            made = find_backend(group, name)
            assert made.device in ("gpu", "cpu", "remote")
            assert isinstance(made.packages, tuple)


def test_a_custom_class_writes_captions(package: str, tmp_path: Path) -> None:
    pool = str(write_pool(tmp_path / "pool", 1, 3))
    options = ["--work", str(tmp_path / "w"), "--source", "mine", "--model", f"{package}:Mine"]
    assert main(["caption", pool, *options]) == 0
    from capmix.workspace import open_workspace

    table = open_workspace(work=str(tmp_path / "w")).table(["mine"])
    assert table["mine_text"][0].as_py() == "mine of 000000000"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("my_captioners:Needy", "--model my_captioners:Needy needs no_such_module: pip install"),
        ("my_captioners:None_", "has no attribute 'None_'"),
        ("no_such_package:Mine", "no module 'no_such_package' to import"),
        ("min:Mine", "did you mean 'mini'?"),
    ],
)
def test_an_unusable_model_is_a_one_line_error(
    package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, message: str
) -> None:
    pool = str(write_pool(tmp_path / "pool", 1, 1))
    options = ["--work", str(tmp_path / "w"), "--source", "mine", "--model", model]
    assert main(["caption", pool, *options]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("capmix: ")
    assert message in line


def test_the_error_for_a_missing_package_names_the_install_command() -> None:
    with pytest.raises(UserError, match=r"x needs no_such: pip install no_such"):
        require(["no_such"], "x")
    with pytest.raises(UserError, match=r"pip install 'capmix\[mini\]'"):
        require(["no_such"], "x", "mini")
    error = ModuleNotFoundError("No module named 'gone'", name="gone.inner")
    assert missing_module(error) == "gone is not installed: pip install gone"


UNFIT = """
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial

from capmix.caption.captioner import ImageCaptioner

from my_captioners import Mine


def function(settings, source):
    return Mine(settings, source)


made = partial(Mine)


class NoArguments(Mine):
    def __init__(self):
        self.settings = {}


class OneMore(Mine):
    def __init__(self, settings, source, weights):
        self.settings = {}


class ByName(Mine):
    def __init__(self, *, settings, source):
        self.settings = {}


class NoConstructor:
    pass


class OfProtocol(ImageCaptioner):
    def prepare(self, sample):
        return None


class Abstract(ABC, Mine):
    @abstractmethod
    def flags(self):
        ...


class NoSettings(Mine):
    def __init__(self, settings, source):
        pass


class NoCaption:
    batch_size, workers = 4, 1

    def __init__(self, settings, source):
        self.settings = {}

    def prepare(self, sample):
        return None


class NoBatches:
    def __init__(self, settings, source):
        self.settings = {}

    def caption(self, prepared, uids, source):
        return []


class Embedded(NoBatches):
    encoder = None


class Defective(Mine):
    def __init__(self, settings, source):
        super().__init__(settings, source)
        len(3)


class Scorer:
    name = "mine"

    def __init__(self, settings):
        self.settings = {}


class NoScorer(Scorer):
    def __init__(self, settings, source):
        self.settings = {}
"""


@pytest.fixture
def unfit(package: str, tmp_path: Path) -> str:
    (tmp_path / "unfit.py").write_text(UNFIT)
    yield "unfit"
    sys.modules.pop("unfit", None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("function", "expected a class, found a function"),
        ("made", "expected a class, found a partial"),
        ("NoArguments", "NoArguments(settings, source): too many positional arguments"),
        ("OneMore", "OneMore(settings, source): missing a required argument: 'weights'"),
        ("ByName", "ByName(settings, source): too many positional arguments"),
        ("NoConstructor", "NoConstructor(settings, source): too many positional arguments"),
        ("OfProtocol", "OfProtocol(settings, source): too many positional arguments"),
        ("Abstract", "Abstract lacks flags"),
        ("NoSettings", "NoSettings lacks settings"),
        ("NoCaption", "NoCaption lacks caption"),
        ("NoBatches", "NoBatches lacks batch_size, workers, prepare"),
    ],
)
def test_a_class_that_is_not_a_captioner_is_a_one_line_error(
    unfit: str, name: str, message: str
) -> None:
    model = f"{unfit}:{name}"
    with pytest.raises(UserError) as caught:
        make_captioner(CaptionSettings(model=model), "mine")
    assert str(caught.value).startswith(f"--model {model}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["builtins:dict", "builtins:int", "collections:OrderedDict"])
def test_a_class_without_a_signature_is_a_one_line_error(model: str) -> None:
    with pytest.raises(UserError, match=rf"--model {model}: "):
        make_captioner(CaptionSettings(model=model), "mine")


def test_a_captioner_with_an_encoder_needs_no_batches(unfit: str) -> None:
    assert make_captioner(CaptionSettings(model=f"{unfit}:Embedded"), "mine").encoder is None


def test_a_type_error_of_the_constructor_is_not_hidden(unfit: str) -> None:
    with pytest.raises(TypeError, match=r"object of type 'int' has no len\(\)"):
        make_captioner(CaptionSettings(model=f"{unfit}:Defective"), "mine")


def test_a_class_that_is_not_a_scorer_is_a_one_line_error(unfit: str) -> None:
    expected = f"--model {unfit}:Scorer: Scorer lacks encoder, project_images, tokenize, "
    with pytest.raises(UserError, match=expected):
        make_scorer(ScoreSettings(model=f"{unfit}:Scorer"))
    with pytest.raises(UserError, match=r"NoScorer\(settings\): missing a required argument"):
        make_scorer(ScoreSettings(model=f"{unfit}:NoScorer"))
    with pytest.raises(UserError, match="expected a class, found a function"):
        make_scorer(ScoreSettings(model=f"{unfit}:function"))


def test_the_command_line_shows_no_traceback(
    unfit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = str(write_pool(tmp_path / "pool", 1, 1))
    for name in ("function", "NoArguments", "NoSettings"):
        options = ["--work", str(tmp_path / "w"), "--source", "mine", "--model", f"unfit:{name}"]
        assert main(["caption", pool, *options]) == 2
        assert capsys.readouterr().err.strip().splitlines()[-1].startswith("capmix: ")
    assert main(["score", "--work", str(tmp_path / "w"), "--model", "unfit:Scorer"]) == 2
