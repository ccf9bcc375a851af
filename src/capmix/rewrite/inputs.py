"""Make the K inputs of a rewriter from the texts of one sample."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from capmix.errors import UserError
from capmix.prompts.escape import Escape
from capmix.prompts.template import Template, parse_template, render
from capmix.prompts.truncation import Truncate, by_pieces
from capmix.rewrite.settings import RewriteSettings
from capmix.rewrite.texts import SampleTexts

Language = Callable[[str], str]  # of a text, ISO 639-1


@dataclass(frozen=True, slots=True)
class SampleInputs:
    """K inputs, or none and the names of the `missing` texts.

    A text of `copied` is written unchanged, as the only text of the sample. `language` is the
    detected language, if the rewriter translates.
    """

    texts: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    copied: str | None = None
    language: str = ""


class InputMaker:
    """Makes the inputs of each sample as `settings` ask.

    Output k has prompt k mod (number of prompts). Its fields are filled with the caption k mod n of
    a source that has n captions of the sample. Without a prompt, input k is this caption of the
    only source. `language` detects the language of a text; it is needed with a target language.
    """

    def __init__(
        self,
        settings: RewriteSettings,
        truncate: Truncate = by_pieces,
        escape: Escape | None = None,
        language: Language | None = None,
    ):
        self._settings, self._language = settings, language
        self._templates = check_prompts(settings)
        self._truncate, self._escape = truncate, escape or Escape()

    def __call__(self, sample: SampleTexts) -> SampleInputs:
        """Return the inputs of a sample that has its row in the index."""
        texts, missing = self._inputs(sample)
        if missing:
            first = next(iter(sample.texts.values()), None)
            may_copy = self._settings.missing == "pass" and first is not None
            return SampleInputs(missing=missing, copied=first[0] if may_copy and first else None)
        if self._language is None or self._settings.target is None:
            return SampleInputs(texts)
        original = next(iter(sample.texts.values()))[0]
        language = self._language(original)
        copied = original if language == self._settings.target else None
        return SampleInputs(texts, copied=copied, language=language)

    def _inputs(self, sample: SampleTexts) -> tuple[tuple[str, ...], tuple[str, ...]]:
        number = self._settings.number
        if not self._templates:
            (source,) = self._settings.from_
            some = sample.texts.get(source, ())
            if not some:
                return (), (source,)
            return tuple(some[k % len(some)] for k in range(number)), ()
        found = []
        for k in range(number):
            values = {source: some[k % len(some)] for source, some in sample.texts.items()}
            template = self._templates[k % len(self._templates)]
            prompt = render(template, values, self._truncate, self._escape)
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
    templates = [parse_template(one, "--prompt") for one in settings.prompt or ()]
    used = {name for one in templates for name in one.names}
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
