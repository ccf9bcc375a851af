"""Make the K inputs of a rewriter from the texts of one sample."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from capmix.errors import UserError
from capmix.prompts.escape import Escape
from capmix.prompts.template import OF_METADATA, Template, parse_template, render
from capmix.prompts.truncation import Truncate, by_pieces
from capmix.rewrite.settings import RewriteSettings
from capmix.rewrite.texts import SampleTexts


@dataclass(frozen=True, slots=True)
class SampleInputs:
    """K inputs, or none and the names of the `missing` texts.

    A text of `copied` is written unchanged, as the only text of the sample, because of `reason`.
    `language` is the detected language, if there is a target language. `is_unknown` if the rewriter
    does not read it.
    """

    texts: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    copied: str | None = None
    reason: str = ""
    language: str = ""
    is_unknown: bool = False


MISSING_COPIED, IN_TARGET, SHORT = "missing_copied", "in_target_language", "short_enough"
UNKNOWN = "unknown_language_copied"


@dataclass(frozen=True)
class TextTools:
    """What a rewriter and its options need to make inputs.

    `truncate` cuts a text to a number of tokens, `escape` makes it harmless in a prompt, `language`
    detects its language (for a target language), `count` counts its tokens for CLIP (for a preset
    that shortens). `languages` are those that the rewriter reads, if they are limited.
    """

    truncate: Truncate = by_pieces
    escape: Escape = field(default_factory=Escape)
    language: Callable[[str], str] | None = None
    count: Callable[[str], int] | None = None
    languages: frozenset[str] | None = None


class InputMaker:
    """Makes the inputs of each sample as `settings` ask.

    With several prompts and e texts per image and prompt, prompt p writes the texts p e to
    p e + e - 1. The fields of the i-th of them are filled with caption i mod n of a source that has
    n captions of the sample. Without a prompt, input i is this caption of the only source.
    """

    def __init__(self, settings: RewriteSettings, tools: TextTools | None = None):
        self._settings, self._tools = settings, tools or TextTools()
        self._templates = check_prompts(settings)
        self._needs_all = settings.preset is not None
        preset = settings.chosen_preset
        self._room = preset.clip_tokens if preset else None

    def __call__(self, sample: SampleTexts) -> SampleInputs:
        """Return the inputs of a sample that is ok in the index."""
        texts, missing = self._inputs(sample)
        may_copy = self._settings.missing == "pass"
        first = next((some[0] for some in sample.texts.values()), None)
        if missing or first is None:
            copied = first if may_copy else None
            return SampleInputs(missing=missing, copied=copied, reason=MISSING_COPIED)
        count, language = self._tools.count, self._tools.language
        if self._room is not None and count is not None and count(first) <= self._room:
            return SampleInputs(texts, copied=first, reason=SHORT)
        if self._settings.target is None or language is None:
            return SampleInputs(texts)
        found = language(first)
        if found == self._settings.target:
            return SampleInputs(texts, copied=first, reason=IN_TARGET, language=found)
        known = self._tools.languages
        if known is not None and found not in known:
            copied = first if may_copy else None
            return SampleInputs((), (), copied, UNKNOWN, found, is_unknown=True)
        return SampleInputs(texts, language=found)

    def _inputs(self, sample: SampleTexts) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return K inputs and no name, or no input and the names of the missing texts."""
        number, sources = self._settings.number, self._settings.from_
        absent = tuple(one for one in sources if one not in sample.texts)
        if absent and (self._needs_all or not self._templates):
            return (), absent
        if not self._templates:
            some = sample.texts[sources[0]]
            return tuple(some[k % len(some)] for k in range(number)), ()
        found = []
        for k in range(number):
            turn = k % self._settings.each
            values = {source: some[turn % len(some)] for source, some in sample.texts.items()}
            template = self._templates[k // self._settings.each]
            prompt = render(template, values, self._tools.truncate, self._tools.escape)
            if prompt.prompt is None:
                return (), prompt.missing
            found.append(prompt.prompt)
        return tuple(found), ()


def check_prompts(settings: RewriteSettings) -> Sequence[Template]:
    """Return the parsed templates of the settings; none if the texts themselves are the inputs.

    Raises UserError for a syntax error, a field that is not a source of `from`, a source that no
    prompt uses, or several sources without a prompt.
    """
    sources = settings.from_
    what = "--prompt" if settings.prompt else f"--preset {settings.preset}"
    templates = [parse_template(one, what) for one in settings.templates]
    used = {name for one in templates for name in one.names}
    if of_json := sorted(name for name in used if name.startswith(OF_METADATA)):
        raise UserError(
            f"{what}: {{{of_json[0]}}}: expected the name of a text source; write the field to a "
            f"source first, with capmix caption --model {of_json[0]}"
        )
    if unknown := sorted(used - set(sources)):
        raise UserError(
            f"--prompt: {{{unknown[0]}}} is not among the input sources {', '.join(sources)}; "
            "add it to --from"
        )
    if not templates and len(sources) > 1:
        raise UserError(
            f"--from {','.join(sources)}: several sources need a --prompt that joins them, such as "
            f"'Merge into one caption: {{{sources[0]}}} / {{{sources[1]}}}'"
        )
    if templates and (unused := [one for one in sources if one not in used]):
        raise UserError(f"--from {unused[0]}: no --prompt has the field {{{unused[0]}}}; remove it")
    return templates
