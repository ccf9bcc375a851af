"""Load a sentence encoder by name."""

from capmix.errors import UserError
from capmix.models.registry import ENCODERS, find_backend, make_backend, require_members
from capmix.sentences.encoder import EncoderSettings, SentenceEncoder

MEMBERS = ("settings", "tokenize", "encode_tokens")


def make_encoder(settings: EncoderSettings) -> SentenceEncoder:
    """Load the sentence encoder. docs/commands/annotate.md lists the names.

    Raises UserError if a package is missing, the class is not a sentence encoder, it does not
    support the prefix or revision, or the model cannot be loaded.
    """
    supported = getattr(find_backend(ENCODERS, settings.model), "options", ("prefix", "revision"))
    for name in ("prefix", "revision"):
        if getattr(settings, name) and name not in supported:
            raise UserError(
                f"--{name}: --model {settings.model} does not support it; omit the option"
            )
    made: SentenceEncoder = make_backend(ENCODERS, settings.model, settings=settings)
    require_members(made, settings.model, MEMBERS)
    return made
