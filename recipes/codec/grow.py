"""Makes a larger tokenizer that begins as a trained smaller one: `python -m recipes.codec.grow SMALL OUT_DIR --arch small [--seed N]`."""

from __future__ import annotations

import argparse
import sys

from jepa_tok.errors import JepaTokError


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
    try:
        from jepa_tok import SpeechTokenizer
        from jepa_tok.hub import read_folder
        from jepa_tok.models.grow import grow
        from jepa_tok.presets import tokenizer_config

        large = grow(SpeechTokenizer.from_pretrained(args.small), tokenizer_config(args.arch), args.seed)
        hash = read_folder(large.save_pretrained(args.out_dir)).hash
    except JepaTokError as ex:
        print(f"error: {ex}", file=sys.stderr)
        return 2
    print(f"wrote {args.out_dir} (tokenizer {hash})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
