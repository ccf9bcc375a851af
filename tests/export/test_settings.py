"""Options of an export that do not fit each other, or have another form."""

from typing import Any

import pytest

from capmix.errors import UserError
from capmix.export.settings import ExportSettings
from capmix.settings.base import make


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"link": "hard"}, "--link: --format webdataset writes no image files"),
        ({"link": "hard", "sidecars": True}, "--link: --sidecars writes no image files"),
        ({"text_suffix": ".caption"}, "--text-suffix: --format webdataset has no text files"),
        ({"text_suffix": ".caption", "format": "llava"}, "--text-suffix: --format llava has no"),
        ({"overwrite": True, "format": "parquet"}, "--overwrite: --format parquet without --push"),
        ({"samples_per_shard": 5, "format": "kohya"}, "--samples-per-shard: --format kohya has no"),
        ({"samples_per_shard": 5, "sidecars": True}, "--samples-per-shard: --sidecars has no"),
        (
            {"sidecars": True, "format": "parquet"},
            "--sidecars: --format parquet is no form of text",
        ),
        ({"private": True}, "--private is of --push USER/NAME"),
    ],
)
def test_an_option_without_effect_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        make(ExportSettings, options, "export")
    assert str(caught.value).startswith(f"export: {told}")


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
    with pytest.raises(UserError, match=r"^--text-suffix: expected .* such as \.caption, found '"):
        make(ExportSettings, {"text_suffix": suffix, "sidecars": True})


@pytest.mark.parametrize("name", ["photos", "a/b/c", "https://hub/a/b", "a/b\n", "-a/b"])
def test_the_name_of_a_data_set_of_another_form_is_answered_with_an_example(name: str) -> None:
    with pytest.raises(UserError, match=r"^--push: expected USER/NAME, such as anna/.*, found '"):
        make(ExportSettings, {"push": name})
