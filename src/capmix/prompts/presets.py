"""Presets of `capmix rewrite --preset`: a template and the options that go with it.

The prompts are capmix's own. `{first}` and `{second}` are the sources of `--from`, in this order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from capmix.errors import UserError
from capmix.prompts.template import FIELD
from capmix.settings.base import did_you_mean

PLACES = ("first", "second")
CLIP_TOKENS = 77  # including the start and the end token

FUSE = """\
Two texts are about the same image. The first was found next to it on the web: it may have \
names, places and dates, but also advertising, or words that have nothing to do with the image. \
The second was written by a captioning model: it describes what is visible, but in general words.
[[
Web text: {first:256}]][[
Caption: {second:256}]]

Write one caption of the image in at most three sentences. Keep what is visible according to the \
caption, and add names and facts of the web text that fit it. Leave out advertising, file names, \
dates of upload and web addresses. Add nothing that neither text has. Answer with the caption \
only."""

PARAPHRASE = """\
Text of an image: {first:256}

Write the same in other words, in the language of the text. Keep every name, number and object, \
and add nothing. Answer with the new text only."""

SHORTEN = """\
Text of an image: {first:1024}

Summarise it in one sentence of at most 40 words, in the language of the text: first the main \
subject, then its most important properties, then the surroundings. Add nothing. Answer with the \
sentence only."""

CLEAN = """\
Text found next to an image on the web: {first:256}

Write it without the parts that do not describe the image: names of shops and photo agencies, \
prices, sizes, file names and numbers, calls to click or buy, copyright notices, and repeated \
words. Keep the words of the rest, their order and their language. If nothing remains, answer with \
the most general noun that the text names. Answer with the text only."""


@dataclass(frozen=True)
class Preset:
    """A way to rewrite texts.

    `template` is None for models that are trained for the task, whose input is the text itself.
    `inputs` is the number of sources of `--from`. `options` are options of `capmix rewrite` that
    the preset sets unless they are given. `clip_tokens` is the number of CLIP tokens that the
    result should fit; texts that already fit need no rewriting.
    """

    name: str
    about: str
    template: str | None
    inputs: int
    options: Mapping[str, Any] = field(default_factory=dict)
    clip_tokens: int | None = None

    def prompt(self, sources: Sequence[str]) -> str | None:
        """Return the template with the names of `sources`; None if the preset has no prompt.

        Raises UserError if the preset needs another number of sources.
        """
        if len(sources) != self.inputs:
            wanted = "one source" if self.inputs == 1 else f"{self.inputs} sources"
            example = ",".join(("raw", "blip2")[: self.inputs])
            raise UserError(
                f"--preset {self.name}: expected {wanted}, such as --from {example}; "
                f"found {', '.join(sources) or 'none'}"
            )
        if self.template is None:
            return None
        names = dict(zip(PLACES, sources, strict=False))
        return FIELD.sub(lambda found: found[0].replace(found[1], names[found[1]]), self.template)


PRESETS = (
    Preset(  # CapsFusion, arXiv 2310.20550; VeCLIP, arXiv 2310.07699
        "fuse",
        "merge the raw text (first 256 tokens) and a caption into one text; if one is missing, "
        "copy the other",
        FUSE,
        2,
        {"missing": "pass", "max_tokens": 128},
    ),
    Preset(  # LaCLIP, arXiv 2305.20088
        "paraphrase",
        "say the same in other words",
        PARAPHRASE,
        1,
        {"missing": "skip", "max_tokens": 96, "temperature": 0.75},
    ),
    Preset(  # the context of CLIP's text tower
        "shorten",
        f"summarise a long text in one sentence that fits CLIP's {CLIP_TOKENS} tokens",
        SHORTEN,
        1,
        {"missing": "skip", "max_tokens": 64},
        CLIP_TOKENS,
    ),
    Preset(  # rewritten alt-texts, as in VeCLIP, arXiv 2310.07699
        "clean",
        "remove advertising, file names and other boilerplate from an alt-text",
        CLEAN,
        1,
        {"missing": "skip", "max_tokens": 96},
    ),
    Preset(  # arXiv 2405.16915
        "translate",
        "translate texts of other languages to English with a translation model (NLLB); texts that "
        "are English are copied",
        None,
        1,
        {"missing": "skip", "target": "en", "max_tokens": 128},
    ),
)


def preset(name: str) -> Preset:
    """Return the preset of this name. Raises UserError if there is none."""
    for one in PRESETS:
        if one.name == name:
            return one
    names = [one.name for one in PRESETS]
    hint = did_you_mean(name, names)
    raise UserError(f"--preset {name!r}: expected one of {', '.join(names)}{hint}")


def preset_list() -> str:
    """Return the presets and what they do, for `--help`."""
    return "; ".join(f"{one.name}: {one.about}" for one in PRESETS)
