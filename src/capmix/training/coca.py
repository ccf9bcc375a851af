"""CoCa in open_clip's trainer, which recognises one by the model's name (open_clip.create_loss).

CoCaLoss adds two weighted terms: contrastive_loss, and caption_loss, the cross-entropy of the next
token.
"""

from typing import Any

from capmix.errors import UserError
from capmix.training.scales import LOSS_WEIGHTS, TrainSettings

MARK = "coca"
DECODER = (("width", 512), ("context_length", 77))  # equal to the text tower's; with defaults
# Arguments of the trainer that open_clip does not support for CoCa models.
UNSUPPORTED = {
    "distill_model": "--distill-model",
    "siglip": "--siglip",
    "lock_image": "--lock-image",
    "lock_text": "--lock-text",
}


def is_coca(name: str, config: dict[str, Any] | None) -> bool:
    """Return whether an open_clip model, or the model of a config, is a CoCa."""
    return MARK in name.lower() if config is None else "multimodal_cfg" in config


def trained_name(stem: str, config: dict[str, Any]) -> str:
    """Return the name under which to register a config whose file is `stem`.json.

    Raises UserError if open_clip would use CoCa's loss for a model that is none.
    """
    named = MARK in stem.lower()
    if named and not is_coca(stem, config):
        raise UserError(
            f"--model {stem}.json: open_clip uses CoCa's loss for models with {MARK!r} in their "
            "name, but this config has no multimodal_cfg. Rename the file"
        )
    return f"{MARK}-{stem}" if is_coca(stem, config) and not named else stem


def check_coca(settings: TrainSettings, name: str, config: dict[str, Any] | None) -> None:
    """Raise UserError for settings that CoCa does not support, or that need a CoCa."""
    weights = {key: getattr(settings, key) for key in LOSS_WEIGHTS}
    given = [f"--{key.replace('_', '-')}" for key, value in weights.items() if value is not None]
    passed = [one.split("=")[0] for one in settings.open_clip if one.startswith("--coca")]
    if not is_coca(name, config):
        for option in (*given, *passed):
            raise UserError(
                f"{option}: {name} is not a CoCa model (a .json config with multimodal_cfg, or an "
                "open_clip model such as coca_ViT-B-32)"
            )
        return
    if given and passed:
        raise UserError(f"--open-clip {passed[0]}: conflicts with {given[0]}; use only the latter")
    if not sum(LOSS_WEIGHTS[key] if value is None else value for key, value in weights.items()):
        raise UserError(f"{' and '.join(given)}: both losses have weight 0; nothing is trained")
    if settings.loss == "siglip":
        raise UserError(f"--loss siglip: {name} is a CoCa model, whose contrastive loss is CLIP's")
    if config is not None:
        _check_config(name, config)


def _check_config(name: str, config: dict[str, Any]) -> None:
    for part in ("vision_cfg", "text_cfg"):
        if not config[part].get("output_tokens"):
            raise UserError(
                f"model {name}: a CoCa needs {part}.output_tokens: true, because its decoder reads "
                "the tokens of both towers"
            )
    text, decoder = config["text_cfg"], config["multimodal_cfg"]
    if not isinstance(decoder, dict):
        raise UserError(f"model {name}: expected a mapping as multimodal_cfg")
    for key, default in () if "hf_model_name" in text else DECODER:
        ours, theirs = decoder.get(key, default), text.get(key, default)
        if ours != theirs:
            raise UserError(
                f"model {name}: multimodal_cfg.{key} is {ours!r}, but text_cfg.{key} is {theirs!r};"
                " the decoder reads the tokens of the text tower, so they must be equal"
            )


def check_coca_arguments(name: str, arguments: Any) -> None:
    """Raise UserError for parsed arguments of the trainer that do not work with a CoCa."""
    for attribute, option in UNSUPPORTED.items():
        if getattr(arguments, attribute, None):
            raise UserError(f"--open-clip {option}: open_clip does not support it for CoCa: {name}")


def initialise_decoder(model: Any) -> None:
    """Initialise the output layer of a CoCa's decoder, which open_clip leaves as allocated memory.

    The values are those of MultimodalTransformer.init_parameters, which open_clip never calls.
    Without it, the first caption loss depends on what was in that memory, and may be NaN.
    """
    import torch

    decoder = getattr(model, "text_decoder", None)
    projection = getattr(decoder, "text_projection", None)
    if projection is not None:
        torch.nn.init.normal_(projection, std=projection.shape[0] ** -0.5)
