"""Run image and text towers in OpenVINO on CPUs, for `--runtime openvino`.

torch traces a tower when the model is loaded, and OpenVINO compiles the trace for batches and texts
of any size. In float32, the results differ from torch's only by rounding. In bfloat16, they differ
more (docs/speed.md), so the runtime and the dtype are settings of every part.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np

from capmix.errors import UserError
from capmix.models.registry import require

Runtime = Literal["torch", "openvino"]
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
# Texts of different lengths, to trace and compare text towers with.
EXAMPLE_TEXTS = ["a cat", "two dogs in the grass", "an old house by the sea, seen from a boat"]
# Smallest cosine between OpenVINO's and torch's vectors. A tower that was traced wrongly is far
# below: for example, one that takes every text for as long as the traced one.
LEAST_AGREEMENT = {"float32": 0.9999, "bfloat16": 0.99}


def check_openvino(runtime: Runtime, device: str, dtype: str) -> str:
    """Return the device for `device` in this runtime: `auto` is the CPU for OpenVINO.

    Raises UserError if OpenVINO is wanted, but is not installed or does not support the device or
    the dtype.
    """
    if runtime != "openvino":
        return device
    if device not in ("auto", "cpu"):
        raise UserError(
            f"--device {device}: --runtime openvino runs only on CPUs; omit one of the options"
        )
    if dtype not in ("auto", *PRECISIONS):
        raise UserError(
            f"--dtype {dtype}: --runtime openvino supports only {' and '.join(PRECISIONS)}"
        )
    require(["openvino"], "--runtime openvino", "openvino")
    return "cpu"


def torch_dtype(runtime: Runtime, dtype: Any) -> Any:
    """Return the dtype to load weights in: OpenVINO itself converts them from float32."""
    import torch

    return torch.float32 if runtime == "openvino" else dtype


class OpenVinoTower:
    """A function of tensors, compiled for this CPU; returns the same as `forward`, in float32."""

    def __init__(
        self,
        name: str,
        owner: Any,
        forward: Callable[..., Any],
        example: Sequence[Any],
        other: Sequence[Any],
        dtype: str,
    ):
        """Compile `forward`, a function of tensors that uses the weights of the module `owner`.

        It is traced on the tensors `example` and then compared with torch on `other`. Each
        dimension in which these differ, at least the first, may have any size in later calls.
        `dtype` is float32 or bfloat16. Raises UserError that begins with `name` if the function
        cannot be compiled.
        """
        try:
            self._run = _compiled(owner, forward, example, other, dtype)
        except UserError:
            raise
        except Exception as error:  # torch and OpenVINO raise various types here
            first = " ".join(str(error).split())[:300]
            raise UserError(
                f"{name}: OpenVINO cannot convert this model ({first}); omit --runtime openvino"
            ) from error
        self._check(name, forward, other, dtype)
        self.settings = {"runtime": "openvino", "dtype": dtype}

    def __call__(self, *inputs: Any) -> Any:
        """Return the result for tensors on the CPU as a float32 tensor."""
        import torch

        arrays = [one.float() if one.is_floating_point() else one for one in inputs]
        found = self._run([one.numpy(force=True) for one in arrays])[0]
        return torch.from_numpy(found.copy())  # OpenVINO reuses the memory in the next call

    def unit(self, *inputs: Any) -> Any:
        """Return the result with rows normalised to length 1, in float32."""
        import torch

        return torch.nn.functional.normalize(self(*inputs), dim=-1)

    def _check(
        self, name: str, forward: Callable[..., Any], other: Sequence[Any], dtype: str
    ) -> None:
        import torch

        with torch.inference_mode():
            expected = forward(*other).float().numpy()
        found = self(*other).numpy()
        agreement = _cosine(found, expected) if found.shape == expected.shape else 0.0
        if not agreement >= LEAST_AGREEMENT[dtype]:  # also if it is NaN
            raise UserError(
                f"{name}: OpenVINO's results differ from torch's (cosine {agreement:.3f}, expected "
                f"at least {LEAST_AGREEMENT[dtype]}); omit --runtime openvino"
            )


def _compiled(
    owner: Any,
    forward: Callable[..., Any],
    example: Sequence[Any],
    other: Sequence[Any],
    dtype: str,
) -> Callable[..., Any]:
    openvino = import_openvino()
    import torch

    from capmix.engine.local import cores  # here, because the settings import this module

    class Traced(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.owner = owner

        def forward(self, *inputs: Any) -> Any:
            return forward(*inputs)

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; the tracer warns about shapes
        # The results are compared below, so torch does not need to check the trace.
        traced = torch.jit.trace(Traced().eval(), tuple(example), check_trace=False)  # type: ignore[no-untyped-call]
        converted = convert(traced, example_input=tuple(example))
    converted.reshape({i: _sizes(*both) for i, both in enumerate(zip(example, other, strict=True))})
    settings = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        "PERFORMANCE_HINT": "LATENCY",  # all cores work on the same batch
        "INFERENCE_NUM_THREADS": cores(),
        # Other threads prepare images and run torch on the same cores.
        "ENABLE_CPU_PINNING": False,
    }
    compiled = openvino_core().compile_model(converted, "CPU", settings)
    if compiled.get_property("INFERENCE_PRECISION_HINT") != getattr(
        openvino.Type, PRECISIONS[dtype]
    ):
        raise UserError(f"--dtype {dtype}: OpenVINO does not support it on this CPU; use float32")
    run: Callable[..., Any] = compiled
    return run


def _sizes(one: Any, other: Any) -> list[int]:
    """Return the shape of both tensors; -1, which is any size, for dimensions that differ."""
    return [a if a == b else -1 for a, b in zip(one.shape, other.shape, strict=True)]


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry.

    OpenVINO reports every import and conversion to its vendor, from a forked process. Without the
    module openvino_telemetry it uses a stub. A telemetry module that is imported already is kept.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def convert(traced: Any, **arguments: Any) -> Any:
    """Convert a traced module with OpenVINO's convert_model, which raises various types.

    If it fails, it leaves the root logger changed: warnings of all packages would be lost.
    """
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        return import_openvino().convert_model(traced, **arguments)
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


@cache
def openvino_core() -> Any:
    """Return OpenVINO's core, the same one until the process exits.

    On CPUs with AMX it gives the thread that makes it a stack for signals and frees this stack when
    it is dropped; if that happens in another thread, or not in reverse order, the next signal
    crashes the process.
    """
    return import_openvino().Core()


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Return the smallest cosine between vectors in the last dimension of both arrays."""
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return float(((one * other).sum(-1) / np.maximum(lengths, 1e-30)).min())
