"""`recipes.codec.export`: a checkpoint's weights as a tokenizer folder, full or compact."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq2")

from jepa_tok import SpeechTokenizer
from jepa_tok.models.codec import Codec
from jepa_tok.presets import codec_config
from recipes.codec.export import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a run of stage 2 leaves: the model's card and the weights of a step."""
    from ruamel.yaml import YAML

    checkpoints = tmp_path_factory.mktemp("run") / "checkpoints"
    weights = checkpoints / "step_7" / "model" / "pp_00" / "tp_00"
    weights.mkdir(parents=True)
    config = codec_config("tiny")
    torch.manual_seed(0)
    torch.save(Codec(config).state_dict(), weights / "sdp_00.pt")
    with (checkpoints / "model.yaml").open("w") as file:
        YAML(typ="safe").dump({"model_family": "jepa_tok_codec", "model_config": asdict(config)}, file)
    return checkpoints.parent


def test_compact_is_the_rounded_tokenizer(run, tmp_path, capsys):
    assert main([str(run), str(tmp_path / "full"), "--name", "small"]) == 0
    full = SpeechTokenizer.from_pretrained(tmp_path / "full")
    assert capsys.readouterr().out == f"wrote {tmp_path / 'full'} (tokenizer {full.hash})\n"
    assert main([str(run), str(tmp_path / "compact"), "--name", "small", "--compact"]) == 0
    compact = SpeechTokenizer.from_pretrained(tmp_path / "compact")
    assert capsys.readouterr().out == f"wrote {tmp_path / 'compact'} (tokenizer {compact.hash})\n"
    full.save_pretrained(tmp_path / "again", compact=True)
    assert SpeechTokenizer.from_pretrained(tmp_path / "again").hash == compact.hash != full.hash
    assert compact.config == full.config and compact.config.name == "small"


@pytest.mark.parametrize("stage", ["jepa", "codec"])
def test_help_does_not_wait_for_heavy_imports(stage):
    program = (
        f"import sys\nfrom recipes.{stage}.export import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'soundfile', 'fairseq2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=ROOT)
