"""The prompts of a source: constant, or templates that contain the sample's own texts.

With several prompts and n captions per image, prompt p writes the captions p n to p n + n - 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from capmix.engine.batches import SampleError
from capmix.errors import UserError
from capmix.pool import Sample
from capmix.prompts.escape import Escape
from capmix.prompts.template import (
    FORMAT,
    OF_METADATA,
    Template,
    TemplatePart,
    is_template,
    parse_template,
    render,
)
from capmix.prompts.truncation import Truncate, by_pieces
from capmix.storage.layout import RAW

MISSING_TEXT = "missing_text"
TEMPLATE_FORMAT = "template_format"  # in the settings of a source whose prompts have fields
PROMPT, NUMBER = "prompt", "captions_per_image"
MOST_PROMPTS = 64
WHAT, EXAMPLE = "--prompt", "a"


@dataclass(frozen=True)
class CaptionPrompts:
    """The prompts of one source. None is a caption without a prompt."""

    texts: tuple[str | None, ...]

    @cached_property
    def _templates(self) -> tuple[Template | None, ...]:
        return tuple(None if text is None else _template(text) for text in self.texts)

    @property
    def has_fields(self) -> bool:
        """Whether the prompts depend on the sample."""
        return any(one is not None and one.names for one in self._templates)

    @property
    def required(self) -> tuple[str, ...]:
        """The fields without which a sample has no captions, each once."""
        found = [name for one in self._templates if one is not None for name in one.required]
        return tuple(dict.fromkeys(found))

    @property
    def recorded(self) -> str | list[str | None] | None:
        """The value for `--prompt` and markers: one prompt is no list."""
        return self.texts[0] if len(self.texts) == 1 else list(self.texts)

    @property
    def marker(self) -> dict[str, Any]:
        """The settings of a source that are about its prompts."""
        return {PROMPT: self.recorded} | ({TEMPLATE_FORMAT: FORMAT} if self.has_fields else {})

    def of(
        self, sample: Sample | None, truncate: Truncate = by_pieces, escape: Escape | None = None
    ) -> tuple[str | None, ...]:
        """Return the prompts of one sample; `sample` is only needed if they have fields.

        Raises SampleError with the reason `missing_text` if the sample lacks a required text.
        """
        texts = {} if sample is None else {name: _text(sample, name) for name in self._names}
        return self._rendered(texts, truncate, escape)

    def example(self) -> tuple[str | None, ...]:
        """Return the prompts with short texts in all fields."""
        return self._rendered(dict.fromkeys(self._names, EXAMPLE), by_pieces, None)

    def _rendered(
        self, texts: Mapping[str, str | None], truncate: Truncate, escape: Escape | None
    ) -> tuple[str | None, ...]:
        found: list[str | None] = []
        for one in self._templates:
            if one is None:
                found.append(None)
                continue
            rendered = render(one, texts, truncate, escape)
            if rendered.prompt is None:
                names = ", ".join(rendered.missing)
                raise SampleError(MISSING_TEXT, f"no text for {WHAT} in {names}")
            found.append(rendered.prompt)
        return tuple(found)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        found = [name for one in self._templates if one is not None for name in one.names]
        return tuple(dict.fromkeys(found))


def caption_prompts(
    given: str | Sequence[str] | None, default: str | None = None
) -> CaptionPrompts:
    """Return the prompts that were `given` with `--prompt`, or the default of the model.

    Raises UserError for an invalid template, a field that captioners do not have, an empty prompt
    among several, or too many prompts.
    """
    some = [given] if isinstance(given, str) else [*(given or [])]
    prompts = CaptionPrompts(tuple(some) if any(some) else (default,))
    if len(prompts.texts) > MOST_PROMPTS:
        raise UserError(f"{WHAT}: {len(prompts.texts)} prompts; expected at most {MOST_PROMPTS}")
    if len(prompts.texts) > 1 and not all(prompts.texts):
        raise UserError(f"{WHAT}: one of several prompts is empty; omit it")
    for name in prompts._names:
        if name != RAW and not name.startswith(OF_METADATA):
            raise UserError(
                f"{WHAT}: {{{name}}}: captioners have the fields {{raw}} and {{field:NAME}} (of "
                "the samples' JSON); texts of other sources are fields of `capmix rewrite`"
            )
    return prompts


def caption_number(settings: Mapping[str, Any]) -> int:
    """Return the number of captions per image that the settings of a marker describe."""
    each = settings.get(NUMBER, 1)
    return (each if isinstance(each, int) else 1) * prompt_number(settings)


def prompt_number(settings: Mapping[str, Any]) -> int:
    """Return the number of prompts that the settings of a marker describe."""
    prompt = settings.get(PROMPT)
    return len(prompt) if isinstance(prompt, list) and prompt else 1


def prompt_openings(settings: Mapping[str, Any]) -> str | list[str | None] | None:
    """Return what a caption that repeats its prompt begins with: one for all, or one per caption.

    Of a template it is the text before the first field.
    """
    prompt, is_template = settings.get(PROMPT), TEMPLATE_FORMAT in settings
    some = prompt if isinstance(prompt, list) else [prompt]
    found = [_opening(one) if one and is_template else one for one in some]
    if len(found) == 1:
        return found[0]
    each = caption_number(settings) // len(found)
    return [one for one in found for _ in range(each)]


def _template(text: str) -> Template:
    if is_template(text):
        return parse_template(text, WHAT)
    return Template((TemplatePart((text,)),))


def _opening(prompt: str) -> str | None:
    for part in _template(prompt).parts:
        if part.pieces:
            first = part.pieces[0]
            return first.strip() or None if isinstance(first, str) else None
    return None


def _text(sample: Sample, name: str) -> str | None:
    """Return the text of one field; a list of strings is joined with ", "."""
    if not name.startswith(OF_METADATA):
        return sample.text
    value = sample.metadata.get(name.removeprefix(OF_METADATA))
    if isinstance(value, list):
        value = ", ".join(item for item in value if isinstance(item, str))
    return str(value) if isinstance(value, str | int | float) else None
