"""Lets fairseq2 import beside another PyTorch than the one its native library was built with, and without wandb.

Python imports a module of this name at the start of each process; `scripts/gpu_host.sh` puts its folder on PYTHONPATH, so
that the processes of torchrun and of data loaders have it too. Nothing on disk is changed.

fairseq2n checks PyTorch's version when it is imported, and refuses. Its symbols do resolve in others, but C++ objects
are laid out differently there: a native call that is handed a tensor would crash. The recipes make none (they read and
collate in Python), hence the check may pass; a program that uses fairseq2's native pipeline should not be run this way.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
STUBS = HERE.parent / "stubs"

HUGGING_FACE = (
    "fairseq2.data.tokenizers.hg",
    "fairseq2.models.hg.converter",
    "fairseq2.models.hg.factory",
    "fairseq2.models.hg.hub",
    "fairseq2.models.hg.tokenizer",
)
"""Modules of fairseq2 that import transformers, and with it scikit-learn and pandas, whatever a recipe needs."""


def name_torch(config: ModuleType, version: str) -> None:
    """Makes `fairseq2n.config` name the PyTorch that is installed, where it names another.

    :param version: `torch.__version__`; what stands behind a plus sign is not compared by fairseq2n either.
    """
    if config._TORCH_VERSION.split("+")[0] != version.split("+")[0]:
        config._TORCH_VERSION = version


class ConfigLoader(SourceFileLoader):
    """Loads `fairseq2n.config` as it is, then renames."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        import torch  # as fairseq2n itself does next

        name_torch(module, torch.__version__)


class WithoutTransformers(SourceFileLoader):
    """Loads a module that sees the stub in place of transformers, which takes longer to import than all the rest."""

    def exec_module(self, module: ModuleType) -> None:
        before = sys.modules.pop("transformers", None)
        spec = spec_from_file_location("transformers", STUBS / "transformers_names.py")
        assert spec is not None and spec.loader is not None
        sys.modules["transformers"] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules["transformers"])
        try:
            super().exec_module(module)
        finally:
            del sys.modules["transformers"]
            if before is not None:
                sys.modules["transformers"] = before


class Finder(MetaPathFinder):
    """Asked first for each module; answers for those above, and for TensorBoard's writer where it would not import."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if fullname == "torch.utils.tensorboard" and find_spec("tensorboard") is None:
            return spec_from_file_location(fullname, STUBS / "torch_utils_tensorboard.py")
        loader = ConfigLoader if fullname == "fairseq2n.config" else WithoutTransformers
        if fullname == "fairseq2n.config" or fullname in HUGGING_FACE:
            found = PathFinder.find_spec(fullname, path)
            if found is not None and found.origin is not None:
                return spec_from_file_location(fullname, loader=loader(fullname, found.origin))
        return None


def run_shadowed() -> None:
    """Runs the host's own module of this name, which ours hides."""
    others = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(module_from_spec(spec))


sys.meta_path.insert(0, Finder())
sys.path.append(str(STUBS))  # last: a package that is installed comes before its stub
run_shadowed()
