"""Models of `transformers` for adapters: read from a folder or the local Hugging Face cache, whole, and never from a pickle."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jepa_tok.adapters.base import require
from jepa_tok.errors import AdapterError


def split_argument(argument: str, repo: str) -> tuple[str, str]:
    """`[REPO][@SETTING]` -> (REPO, SETTING); `repo` where none is given, "" for no setting. REPO may be a folder."""
    given, setting = argument, ""
    match = re.fullmatch(r"(.*)@([\d.]+)", argument)
    if match and not Path(argument).is_dir():
        given, setting = match[1], match[2]
    return given or repo, setting


def load_model(name: str, kind: str, repo: str) -> Any:
    """The `kind` of transformers saved in `repo`, a folder or a repository's name, in evaluation mode on the CPU.

    Nothing is downloaded. Raises AdapterError where transformers is missing, or `repo` is not at hand as config.json and safetensors
    with every weight of the model.
    """
    transformers = require("transformers", name)
    make = getattr(transformers, kind, None)
    if make is None:
        raise AdapterError(
            f"`{name}` needs a transformers with {kind}, but {transformers.__version__} has none; update it."
        )
    try:
        model, report = make.from_pretrained(
            repo, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise AdapterError(f"`{name}` cannot read '{repo}': {_remedy(repo, kind, error)}") from None
    absent = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if absent:  # transformers would leave them random
        raise AdapterError(
            f"`{name}` must find all weights of a {kind} in '{repo}', but {len(absent)} are missing, `{absent[0]}` among them: is it another model's?"
        )
    return model.eval()


def load_normalize(name: str, repo: str) -> tuple[bool, int]:
    """Whether `repo`'s feature extractor sets each clip to zero mean and unit variance, and its sample rate in Hz.

    Raises AdapterError where preprocessor_config.json is not at hand.
    """
    transformers = require("transformers", name)
    try:
        extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(repo, local_files_only=True)
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"`{name}` cannot read preprocessor_config.json of '{repo}' ({_first(error)}): copy it there from where the model is from."
        ) from None
    return bool(extractor.do_normalize), int(extractor.sampling_rate)


def _remedy(repo: str, kind: str, error: Exception) -> str:
    if Path(repo).is_dir():
        return f"{_first(error)}."
    return (
        f"it is neither a folder nor in the Hugging Face cache with safetensors; `hf download {repo}` fetches it, and where it has only a "
        f"pickle, `{kind}.from_pretrained('{repo}').save_pretrained('FOLDER')` makes a folder for `NAME:FOLDER`."
    )


def _first(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0].rstrip(".") or type(error).__name__
