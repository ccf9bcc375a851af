"""DataComp's training scales, and the arguments for open_clip's trainer."""

from dataclasses import dataclass, replace
from typing import Literal

from capmix.engine.settings import HARDWARE
from capmix.errors import UserError
from capmix.settings.base import Settings, option
from capmix.settings.values import Weights, Words

CHECKPOINTS = 5
TINY = "tiny"
MODEL, SCHEDULE, LOGGING = "Model and texts", "Schedule", "Logging"


@dataclass(frozen=True)
class Scale:
    """A training scale.

    `batch_size` is the total over all devices, `samples` the number seen in total, and `warmup` is
    in steps. `beta2` None means open_clip's default, 0.98 for vision transformers.
    """

    name: str
    batch_size: int
    learning_rate: float
    samples: int
    warmup: int
    model: str
    beta2: float | None = None
    checkpoints: int = CHECKPOINTS
    grad_checkpointing: bool = True


# From DataComp's scale_configs.py, except `tiny`: the embedded pool on a CPU, docs/training.md.
SCALES = {
    scale.name: scale
    for scale in (
        Scale("debug", 1024, 1e-4, 128_000, 500, "ViT-B-32"),
        Scale("small", 4096, 5e-4, 12_800_000, 500, "ViT-B-32"),
        Scale("medium", 4096, 5e-4, 128_000_000, 500, "ViT-B-32"),
        Scale("large", 8192, 5e-4, 1_280_000_000, 500, "ViT-B-16"),
        Scale("xlarge", 90_112, 1e-3, 12_800_000_000, 10_000, "ViT-L-14", beta2=0.95),
        Scale(TINY, 128, 1e-3, 10_240, 10, "capmix-rn-tiny", None, 2, False),
    )
}

LOSS_WEIGHTS = {"caption_loss_weight": 2.0, "contrastive_loss_weight": 1.0}  # open_clip's, of CoCa


class TrainSettings(Settings):
    """Options of a training run. None means the value of the scale."""

    scale: str = option(
        TINY, "tiny, or a DataComp scale: debug, small, medium, large, xlarge.", group=MODEL
    )
    model: str | None = option(
        None, "open_clip model name or .json config file (default: the scale's).", group=MODEL
    )
    loss: Literal["clip", "siglip"] = option("clip", "Loss function.", group=MODEL)
    caption_loss_weight: float | None = option(
        None,
        "CoCa: weight of the caption loss (default: 2).",
        group=MODEL,
        metavar="WEIGHT",
        ge=0,
        allow_inf_nan=False,
    )
    contrastive_loss_weight: float | None = option(
        None,
        "CoCa: weight of the contrastive loss (default: 1).",
        group=MODEL,
        metavar="WEIGHT",
        ge=0,
        allow_inf_nan=False,
    )
    texts: Weights = option(
        dict,
        "Draw one of a sample's texts each time it is seen, by weight: raw=0.5,blip2=0.5.",
        group=MODEL,
        metavar="SOURCE=P,...",
    )
    seed: int = option(0, "Random seed.", group=SCHEDULE)
    samples: int | None = option(
        None, "Samples seen in total (default: the scale's).", group=SCHEDULE, ge=1
    )
    batch_size: int | None = option(
        None, "Batch size over all devices (default: the scale's).", group=SCHEDULE, ge=1
    )
    learning_rate: float | None = option(
        None, "Peak learning rate (default: the scale's).", group=SCHEDULE, gt=0
    )
    warmup: int | None = option(
        None, "Warm-up steps (default: the scale's).", group=SCHEDULE, metavar="STEPS", ge=1
    )
    grad_clip: float | None = option(
        None, "Gradient clipping norm (default: none).", group=SCHEDULE, metavar="NORM", gt=0
    )
    exact: bool = option(
        False,
        "Train on exactly --samples samples; default: rounded up per data worker, as in DataComp.",
        group=SCHEDULE,
    )
    resample: bool | None = option(
        None,
        "Draw shards with replacement, as in DataComp, instead of making passes over the data "
        "(default: draw; tiny: passes).",
        group=SCHEDULE,
    )
    checkpoints: int | None = option(
        None, "Number of checkpoints (default: 5; tiny: 2).", group=SCHEDULE, ge=1
    )
    accumulate: int = option(1, "Gradient accumulation steps.", group=HARDWARE, ge=1)
    precision: str | None = option(
        None,
        "Precision: amp, amp_bf16, fp32, ... (default: amp; fp32 on CPUs and for tiny).",
        group=HARDWARE,
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "Device.", group=HARDWARE)
    workers: int | None = option(
        None, "Data workers per device (default: 4; tiny: 1).", group=HARDWARE, ge=0
    )
    threads: int | None = option(
        None,
        "CPU threads of torch (default: OMP_NUM_THREADS; on a CPU without it, 1 per 50 billion "
        "operations of a step, up to one per core).",
        group=HARDWARE,
        ge=1,
    )
    log_every: int | None = option(
        None,
        "Steps between log lines (default: 100; tiny: 10).",
        group=LOGGING,
        metavar="STEPS",
        ge=1,
    )
    report_to: str = option(
        "", "Loggers: tensorboard, wandb or both, comma-separated.", group=LOGGING
    )
    open_clip: Words = option(
        list,
        "Additional arguments for open_clip's trainer, such as --open-clip='--lock-text'.",
        group=LOGGING,
        metavar="'ARGUMENTS'",
    )

    @property
    def in_full(self) -> Scale:
        """The scale with the overrides of these settings. Raises UserError if it is unknown."""
        if self.scale not in SCALES:
            raise UserError(f"--scale {self.scale}: expected one of {', '.join(SCALES)}")
        names = ("batch_size", "learning_rate", "samples", "warmup", "model", "checkpoints")
        changes = {name: getattr(self, name) for name in names}
        return replace(SCALES[self.scale], **{k: v for k, v in changes.items() if v is not None})

    @property
    def draws_shards(self) -> bool:
        return self.scale != TINY if self.resample is None else self.resample

    @property
    def data_workers(self) -> int:
        if self.workers is not None:
            return self.workers
        return 1 if self.scale == TINY else 4

    def device_batch(self, world_size: int) -> int:
        """Return the batch size per device and step. Raises UserError if it is not an integer."""
        batch, parts = self.in_full.batch_size, world_size * self.accumulate
        if batch % parts:
            raise UserError(
                f"batch size {batch} is not divisible by {world_size} devices x {self.accumulate} "
                "accumulation steps; change --batch-size or --accumulate"
            )
        return batch // parts


def open_clip_arguments(
    settings: TrainSettings,
    data: str,
    logs: str,
    name: str,
    world_size: int,
    on_cpu: bool = False,
    data_weights: str | None = None,
) -> list[str]:
    """Return the arguments of open_clip's trainer, as in DataComp's train.py for its scales.

    `data` and `data_weights` are in open_clip's format: parts joined by `::`. With `on_cpu`, the
    default precision is float32.
    """
    scale = settings.in_full
    tiny = settings.scale == TINY
    precision = settings.precision or ("fp32" if on_cpu or tiny else "amp")
    log_every = settings.log_every or (10 if tiny else 100)
    arguments = ["--save-frequency", "0", "--ddp-static-graph", "--local-loss"]
    arguments += ["--gather-with-grad"]
    arguments += ["--grad-checkpointing"] if scale.grad_checkpointing else []
    arguments += ["--train-data", data]
    arguments += ["--train-num-samples", str(scale.samples // scale.checkpoints)]
    arguments += ["--warmup", str(scale.warmup), "--dataset-type", "webdataset"]
    arguments += ["--precision", precision, "--workers", str(settings.data_workers)]
    arguments += ["--model", scale.model]
    arguments += ["--batch-size", str(settings.device_batch(world_size))]
    arguments += ["--epochs", str(scale.checkpoints), "--lr", str(scale.learning_rate)]
    arguments += ["--logs", logs, "--name", name, "--seed", str(settings.seed)]
    arguments += ["--accum-freq", str(settings.accumulate)]
    arguments += ["--log-every-n-steps", str(log_every)]
    arguments += ["--save-most-recent", "--resume", "latest"]
    arguments += ["--dataset-resampled"] if settings.draws_shards else []
    arguments += ["--report-to", settings.report_to] if settings.report_to else []
    arguments += ["--wandb-project-name", "capmix"] if "wandb" in settings.report_to else []
    arguments += ["--beta2", str(scale.beta2)] if scale.beta2 is not None else []
    arguments += ["--train-data-upsampling-factors", data_weights] if data_weights else []
    arguments += ["--grad-clip-norm", str(settings.grad_clip)] if settings.grad_clip else []
    arguments += ["--siglip"] if settings.loss == "siglip" else []
    for name in LOSS_WEIGHTS:
        weight = getattr(settings, name)
        arguments += [] if weight is None else [f"--coca-{name.replace('_', '-')}", str(weight)]
    arguments += ["--device", "cpu"] if on_cpu else []
    return [*arguments, *settings.open_clip]
