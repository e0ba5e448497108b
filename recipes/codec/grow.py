"""Makes a larger tokenizer that begins as a trained smaller one: `python -m recipes.codec.grow SMALL OUT_DIR --arch small [--seed N]`."""

from __future__ import annotations

import argparse
import sys

from recipes.outcome import write_tokenizer


def grow_folder(small: str, out_dir: str, arch: str, seed: int) -> str:
    """Writes `small`, grown to the preset `arch`, and returns its hash; JepaTokError where they do not fit or cannot be read or written."""
    from jepa_tok import SpeechTokenizer
    from jepa_tok.models.grow import grow
    from jepa_tok.presets import tokenizer_config

    large = grow(SpeechTokenizer.from_pretrained(small), tokenizer_config(arch), seed)
    large.save_pretrained(out_dir)
    return large.hash


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m recipes.codec.grow tiny exp/grown --arch small; then python -m recipes.codec exp/stage2 --config-file recipes/codec/configs/cpu_small.yaml --config tokenizer=exp/grown",
    )
    parser.add_argument("small", metavar="SMALL", help="folder of a tokenizer, or the name of a packaged one")
    parser.add_argument("out_dir", metavar="OUT_DIR", help="folder of the larger tokenizer, to be trained on")
    parser.add_argument("--arch", default="small", help="preset to grow to (default: small)")
    parser.add_argument("--seed", type=int, default=0, help="of the copies' noise and the new blocks")
    args = parser.parse_args(argv)
    return write_tokenizer(args.out_dir, lambda: grow_folder(args.small, args.out_dir, args.arch, args.seed))


if __name__ == "__main__":
    sys.exit(main())
