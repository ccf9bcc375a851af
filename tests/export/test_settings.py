"""Invalid and conflicting options of an export."""

from typing import Any

import pytest

from capmix.errors import UserError
from capmix.export.settings import ExportSettings
from capmix.settings.base import make


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"link": "hard"}, "--link: --format webdataset writes no image files"),
        ({"link": "hard", "sidecars": True}, "--link: --sidecars writes no image files"),
        ({"text_suffix": ".caption"}, "--text-suffix applies to --sidecars and"),
        ({"text_suffix": ".caption", "format": "llava"}, "--text-suffix applies to --sidecars and"),
        ({"overwrite": True, "format": "parquet"}, "--overwrite has no effect on --format parquet"),
        ({"samples_per_shard": 5, "format": "kohya"}, "--samples-per-shard: --format kohya has no"),
        ({"samples_per_shard": 5, "sidecars": True}, "--samples-per-shard: --sidecars has no"),
        (
            {"sidecars": True, "format": "parquet"},
            "--sidecars: --format parquet has no text files",
        ),
        ({"private": True}, "--private requires --push USER/NAME"),
    ],
)
def test_an_option_without_effect_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make(ExportSettings, options, "export")
    assert str(caught.value).startswith(f"export: {message}")


@pytest.mark.parametrize(
    "options",
    [
        {"link": "hard", "format": "llava"},
        {"text_suffix": ".caption", "format": "kohya", "overwrite": True},
        {"text_suffix": ".caption", "sidecars": True, "format": "kohya", "overwrite": True},
        {"overwrite": True, "push": "a/b", "format": "csv", "private": True},
        {"samples_per_shard": 5, "format": "jsonl"},
    ],
)
def test_options_with_an_effect_are_taken(options: dict[str, Any]) -> None:
    assert make(ExportSettings, options).model_dump(exclude_defaults=True) == options


@pytest.mark.parametrize("suffix", ["caption", ".", ".a/b", ".a\n", "." + "a" * 21])
def test_a_suffix_of_another_form_is_answered_with_an_example(suffix: str) -> None:
    with pytest.raises(
        UserError, match=r"^--text-suffix: expected .* for example \.caption, found '"
    ):
        make(ExportSettings, {"text_suffix": suffix, "sidecars": True})


@pytest.mark.parametrize("name", ["photos", "a/b/c", "https://hub/a/b", "a/b\n", "-a/b"])
def test_the_name_of_a_data_set_of_another_form_is_answered_with_an_example(name: str) -> None:
    with pytest.raises(
        UserError, match=r"^--push: expected USER/NAME, for example anna/.*, found '"
    ):
        make(ExportSettings, {"push": name})
