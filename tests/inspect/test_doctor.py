"""doctor reads what each extra needs from the installed metadata."""

import tomllib
from pathlib import Path

import pytest

from capmix.inspect import doctor

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_every_extra_has_a_purpose() -> None:
    extras = tomllib.loads(PROJECT.read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(doctor.PURPOSES) == set(extras)


def of(monkeypatch: pytest.MonkeyPatch, requires: list[str], extras: list[str]) -> list[str]:
    """Return the lines for packages of which only a and b are installed."""
    about = {"Provides-Extra": extras}
    versions = {"a": "1.0", "b": "2.0", "capmix": "0.3"}

    class Metadata:
        get_all = staticmethod(about.get)

    def version(name: str) -> str:
        if name not in versions:
            raise doctor.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor.metadata, "metadata", lambda name: Metadata)
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: requires)
    monkeypatch.setattr(doctor.metadata, "version", version)
    return doctor.lines()[2:]


def test_packages_are_those_of_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    requires = [
        "a>=1",
        "c>=1,<2; python_version < '4'",
        "b==2; extra == 'open-clip'",
        "b[x]>=2; extra == 'ray'",
        "d; python_version < '4' and extra == \"heif\"",
        "capmix[open_clip,heif]; extra == 'demo'",
        "a; extra == 'new'",
    ]
    assert of(monkeypatch, requires, ["demo", "heif", "new", "open-clip", "ray"]) == [
        "base: a 1.0, c MISSING",
        "missing  demo: everything that capmix demo needs: d (pip install 'capmix[demo]')",
        "ok       open_clip: CoCa captions, CLIP scores, evaluation (b 2.0)",
        "ok       ray: --engine ray (b 2.0)",
        "missing  heif: HEIC images: d (pip install 'capmix[heif]')",
        "ok       new (a 1.0)",
        "missing  nltk: imagenet_noun() in recipes: nltk (pip install nltk)",
    ]
