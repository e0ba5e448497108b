"""Makes a tokenizer folder of a stage 1 run, its decoder untrained: for probing what the encoder knows.

`python -m recipes.jepa.export RUN_DIR OUT_DIR --calibrate MANIFEST [--step N] [--weights online|target]`

Without `--calibrate` the quantiser stays as initialised, with dimensions that hardly use their levels; stage 2 calibrates it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jepa_tok.config import TokenizerConfig
from jepa_tok.errors import ConfigError, JepaTokError
from jepa_tok.presets import PRESETS, tokenizer_config
from jepa_tok.training_config import JepaConfig
from recipes.outcome import write_tokenizer

if TYPE_CHECKING:
    from jepa_tok import SpeechTokenizer

CALIBRATION_FRAMES, CALIBRATION_SECONDS = 2_000, 15.0


def tokenizer_for(config: JepaConfig, preset: str | None = None) -> TokenizerConfig:
    """A tokenizer around the run's encoder: quantiser and generator of the preset with this encoder, or of `preset`.

    ConfigError where no preset has the encoder and none is given.
    """
    if preset is None:
        same = [name for name in PRESETS if tokenizer_config(name).encoder == config.encoder]
        if not same:
            raise ConfigError(
                "the run's encoder is that of no preset; name one by --preset for quantiser and generator."
            )
        preset = same[0]
    base = tokenizer_config(preset)
    made = TokenizerConfig(
        name=f"{preset}-stage1", encoder=config.encoder, quantizer=base.quantizer, generator=base.generator
    )
    made.check()
    return made


def export_encoder(
    run_dir: str | Path,
    out_dir: str | Path,
    step: int | None = None,
    weights: str = "online",
    preset: str | None = None,
    seed: int = 0,
    calibrate: str | Path | None = None,
) -> str:
    """Writes the encoder of a stage 1 checkpoint with an untrained generator; returns the hash.

    :param weights: `online` or `target`, the EMA.
    :param calibrate: Corpus whose rows of `split` train (all, if it has no such column) the quantiser is set to.
    :raises JepaTokError: `run_dir` holds no stage 1 checkpoint, `calibrate` no audio, or `out_dir` cannot be written.
    """
    from jepa_tok import SpeechTokenizer
    from jepa_tok._fairseq2.checkpoint import ENCODER_FAMILY, find_checkpoint, part_of
    from jepa_tok.models.jepa import Jepa

    run = find_checkpoint(run_dir, step)
    config: JepaConfig = run.config_as(ENCODER_FAMILY, JepaConfig)
    tokenizer = SpeechTokenizer.from_config(tokenizer_for(config, preset), seed=seed)
    state = run.state(lambda: Jepa(config))
    tokenizer.encoder.load_state_dict(part_of(state, "encoder" if weights == "online" else "target_encoder"))
    if calibrate is not None:
        calibrate_on(calibrate, tokenizer, seed)
    tokenizer.save_pretrained(out_dir)
    return tokenizer.hash


def calibrate_on(corpus: str | Path, tokenizer: SpeechTokenizer, seed: int) -> None:
    """Sets the quantiser to latent frames of the corpus's training rows; JepaTokError where none of them can be read."""
    import numpy as np
    from fairseq2.recipe.error import RecipeError

    from jepa_tok.corpus.manifest import read_corpus
    from tasks.codec.calibrate import calibrate_quantiser
    from tasks.speech import sample_waves

    rows = [row for row in read_corpus(corpus) if row.info.get("split", "train") == "train"]
    waves = sample_waves(rows, np.random.default_rng([seed, 4]), CALIBRATION_SECONDS)
    try:
        calibrate_quantiser(tokenizer.encoder, tokenizer.fsq, waves, CALIBRATION_FRAMES)
    except RecipeError as ex:
        raise JepaTokError(str(ex)) from None


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m recipes.jepa.export exp/jepa exp/tokenizer-stage1 --calibrate data/all.jsonl",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="folder of a run of recipes.jepa")
    parser.add_argument(
        "out_dir", metavar="OUT_DIR", help="folder of the tokenizer, for SpeechTokenizer.from_pretrained"
    )
    parser.add_argument("--step", type=int, help="checkpoint to take; the last by default")
    parser.add_argument("--weights", choices=["online", "target"], default="online", help="trained encoder or its EMA")
    parser.add_argument("--preset", choices=list(PRESETS), help="whose quantiser and generator; found by default")
    parser.add_argument("--seed", type=int, default=0, help="seed of the untrained parts")
    parser.add_argument("--calibrate", metavar="MANIFEST", help="corpus whose training rows the quantiser is set to")
    args = parser.parse_args(argv)
    given = (args.run_dir, args.out_dir, args.step, args.weights, args.preset, args.seed, args.calibrate)
    return write_tokenizer(args.out_dir, lambda: export_encoder(*given), "; its decoder is untrained")


if __name__ == "__main__":
    sys.exit(main())
