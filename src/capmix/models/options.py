"""Options of models that several commands have; each field is declared here once."""

from typing import Literal

from capmix.engine import batches
from capmix.engine.settings import HARDWARE, RESUME
from capmix.settings.base import Settings, option, option_info

MODEL, SAMPLING, SERVER = "Model", "Sampling", "Server"
Precision = Literal["auto", "float32", "bfloat16", "float16"]

REVISION = option(None, "Hub revision: branch, tag or commit.", group=MODEL)
TRUST_REMOTE_CODE = option(
    False,
    "DANGER: run Python code from the model's repository with your permissions.",
    group=MODEL,
)
TOP_K = option(50, "Sample from the K most likely tokens.", group=SAMPLING, ge=1)
PLAIN_SAMPLING = option(
    False,
    "Ignore the repetition penalties and forced tokens of a model's generation config "
    "(transformers models).",
    group=SAMPLING,
)
SEED = option(0, "Random seed.", group=SAMPLING)
DTYPE = option(
    "auto",
    "Precision; auto = bfloat16 on GPUs (float16 if not supported), float32 on CPUs.",
    group=HARDWARE,
)
DEVICE = option("auto", "Device: auto, cpu, cuda, cuda:1, ...", group=HARDWARE)
CONCURRENCY = option(32, "Maximum number of concurrent requests.", group=SERVER, ge=1)
TIMEOUT = option(
    120.0,
    "Request timeout in seconds, from connecting to the last byte of the response.",
    group=SERVER,
    gt=0,
)
RETRIES = option(
    5, "Retries per request after timeouts and transient server errors.", group=SERVER, ge=0
)
BATCH_TIMEOUT = option(
    batches.BATCH_TIMEOUT,
    "Timeout per batch in seconds; a slower batch is retried in halves, a slower sample fails.",
    group=RESUME,
    gt=0,
)


def sampling(settings: Settings) -> dict[str, object]:
    """Return the options of how tokens are drawn, which are written to every marker."""
    fields = type(settings).model_fields.items()
    return {
        name: getattr(settings, name)
        for name, field in fields
        if option_info(field).group == SAMPLING
    }
