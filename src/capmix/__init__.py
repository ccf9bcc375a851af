"""capmix: caption an image-text pool, mix synthetic captions with raw text, and test the mix.

    import capmix
    ws = capmix.open("./shards", work="./work")
    ws.caption("blip2", model="Salesforce/blip2-opt-2.7b")
    ws.score(model="ViT-L-14-quickgelu/openai")
    subset = ws.mix("raw-top+synthetic-above", synthetic="blip2", fraction=0.3)
    subset.export("./mixed")

Heavy modules are imported only when they are used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capmix.caption.in_memory import caption_images as caption_images
    from capmix.errors import UserError as UserError
    from capmix.mix.recipe import load_recipe as load_recipe
    from capmix.pipeline.config import load_pipeline as load_pipeline
    from capmix.pipeline.run import run_pipeline as run_pipeline
    from capmix.workspace import Run as Run
    from capmix.workspace import Subset as Subset
    from capmix.workspace import Workspace as Workspace
    from capmix.workspace import evaluate as evaluate
    from capmix.workspace import open_workspace as open
    from capmix.workspace import train as train

    __version__: str

_HOMES = {
    "Run": ("capmix.workspace", "Run"),
    "Subset": ("capmix.workspace", "Subset"),
    "UserError": ("capmix.errors", "UserError"),
    "Workspace": ("capmix.workspace", "Workspace"),
    "caption_images": ("capmix.caption.in_memory", "caption_images"),
    "evaluate": ("capmix.workspace", "evaluate"),
    "load_pipeline": ("capmix.pipeline.config", "load_pipeline"),
    "load_recipe": ("capmix.mix.recipe", "load_recipe"),
    "open": ("capmix.workspace", "open_workspace"),
    "run_pipeline": ("capmix.pipeline.run", "run_pipeline"),
    "train": ("capmix.workspace", "train"),
}
__all__ = [
    "Run",
    "Subset",
    "UserError",
    "Workspace",
    "__version__",
    "caption_images",
    "evaluate",
    "load_pipeline",
    "load_recipe",
    "open",
    "run_pipeline",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("capmix")
    if name not in _HOMES:
        raise AttributeError(f"module 'capmix' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
