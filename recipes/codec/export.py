"""Makes a tokenizer folder of a stage 2 run: `python -m recipes.codec.export RUN_DIR OUT_DIR [--step N] [--compact]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jepa_tok.training_config import CodecConfig
from recipes.outcome import write_tokenizer


def export_codec(
    run_dir: str | Path, out_dir: str | Path, step: int | None = None, name: str | None = None, compact: bool = False
) -> str:
    """Writes encoder, quantiser and generator of a checkpoint, averaged where they are, as `config.json` + `model.safetensors`.

    :param step: Which checkpoint; the last by default.
    :param name: Name in the tokenizer's config; the architecture's by default.
    :param compact: Weights rounded to int8, in a quarter of the size: another tokenizer, the one to measure if it is to be shipped.
    :returns: The hash of the tokenizer that the folder holds.
    :raises JepaTokError: `run_dir` holds no stage 2 checkpoint, or `out_dir` cannot be written.
    """
    from jepa_tok import SpeechTokenizer
    from jepa_tok._fairseq2.checkpoint import CODEC_FAMILY, find_checkpoint, part_of
    from jepa_tok.hub import read_folder
    from jepa_tok.models.codec import Codec

    run = find_checkpoint(run_dir, step)
    config: CodecConfig = run.config_as(CODEC_FAMILY, CodecConfig)
    state = run.state(lambda: Codec(config))
    if name is not None:
        config.tokenizer.name = name
    tokenizer = SpeechTokenizer.from_config(config.tokenizer)
    for part in ("encoder", "fsq", "generator"):
        averaged = part_of(state, f"average.{part}")
        getattr(tokenizer, part).load_state_dict(averaged or part_of(state, part))
    return read_folder(tokenizer.save_pretrained(out_dir, compact)).hash


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: python -m recipes.codec.export exp/codec exp/tokenizer"
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="folder of a run of recipes.codec")
    parser.add_argument(
        "out_dir", metavar="OUT_DIR", help="folder of the tokenizer, for SpeechTokenizer.from_pretrained"
    )
    parser.add_argument("--step", type=int, help="checkpoint to take; the last by default")
    parser.add_argument("--name", help="name written into the tokenizer's config")
    parser.add_argument(
        "--compact", action="store_true", help="round weights to int8: a quarter of the size, another tokenizer"
    )
    args = parser.parse_args(argv)
    return write_tokenizer(
        args.out_dir, lambda: export_codec(args.run_dir, args.out_dir, args.step, args.name, args.compact)
    )


if __name__ == "__main__":
    sys.exit(main())
