import pytest

from capmix.errors import UserError
from capmix.training.scales import SCALES, TrainSettings, open_clip_arguments

# DataComp's scale_configs.py: batch size, learning rate, samples, warm-up steps, model, beta2.
DATACOMP = {
    "debug": (1024, 1e-4, 128_000, 500, "ViT-B-32", None),
    "small": (4096, 5e-4, 12_800_000, 500, "ViT-B-32", None),
    "medium": (4096, 5e-4, 128_000_000, 500, "ViT-B-32", None),
    "large": (8192, 5e-4, 1_280_000_000, 500, "ViT-B-16", None),
    "xlarge": (90_112, 1e-3, 12_800_000_000, 10_000, "ViT-L-14", 0.95),
}


def test_the_scales_are_datacomps() -> None:
    found = {
        s.name: (s.batch_size, s.learning_rate, s.samples, s.warmup, s.model, s.beta2)
        for s in SCALES.values()
        if s.name != "tiny"
    }
    assert found == DATACOMP


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("world_size", [1, 8, 64])
@pytest.mark.parametrize("scale", list(DATACOMP))
def test_arguments_equal_those_of_datacomps_train_py(
    scale: str, world_size: int, accumulate: int
) -> None:
    """The arguments that train.py passed to open_clip: order, names and values."""
    batch, rate, samples, warmup, model, beta2 = DATACOMP[scale]
    line = (
        "--save-frequency 0 --ddp-static-graph --local-loss --gather-with-grad "
        "--grad-checkpointing --train-data D/{00000000..00000007}.tar "
        f"--train-num-samples {samples // 5} --warmup {warmup} --dataset-type webdataset "
        f"--precision amp --workers 4 --model {model} "
        f"--batch-size {batch // (world_size * accumulate)} --epochs 5 --lr {rate} --logs L "
        f"--name N --seed 0 --accum-freq {accumulate} --log-every-n-steps 100 "
        "--save-most-recent --resume latest --dataset-resampled"
    ) + (f" --beta2 {beta2}" if beta2 else "")
    settings = TrainSettings(scale=scale, accumulate=accumulate)
    found = open_clip_arguments(settings, "D/{00000000..00000007}.tar", "L", "N", world_size)
    assert found == line.split()


def test_open_clip_understands_every_argument() -> None:
    from open_clip_train.params import parse_args

    settings = TrainSettings(
        scale="xlarge", loss="siglip", grad_clip=1.0, report_to="wandb", open_clip=["--lock-text"]
    )
    parsed = parse_args(open_clip_arguments(settings, "D", "L", "N", 8, True, "1::2"))
    assert (parsed.siglip, parsed.grad_clip_norm, parsed.beta2) == (True, 1.0, 0.95)
    assert (parsed.train_data_upsampling_factors, parsed.lock_text) == ("1::2", True)
    assert (parsed.precision, parsed.device) == ("fp32", "cpu")
    small = parse_args(open_clip_arguments(TrainSettings(scale="small"), "D", "L", "N", 8))
    assert (small.beta1, small.beta2, small.eps, small.wd) == (0.9, 0.98, 1e-6, 0.2)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="is not divisible by 3 devices"):
        TrainSettings(scale="small").device_batch(3)


def test_an_unknown_scale_is_named() -> None:
    with pytest.raises(UserError, match="expected one of debug, small"):
        _ = TrainSettings(scale="huge").in_full
