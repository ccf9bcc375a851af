"""Replace architectures of open_clip by the small ones of $CAPMIX_DOCS_ARCHITECTURES.

It is on PYTHONPATH where the blocks of the docs run (see docs_folder.py), so every Python imports
it when it starts. open_clip itself is imported only by what needs it.
"""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder


class _SmallArchitectures(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "open_clip.factory":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            module.add_model_config(os.environ["CAPMIX_DOCS_ARCHITECTURES"])

        spec.loader.exec_module = exec_module
        return spec


if "CAPMIX_DOCS_ARCHITECTURES" in os.environ:
    sys.meta_path.insert(0, _SmallArchitectures())
