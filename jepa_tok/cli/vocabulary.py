"""`jepa-tok vocabulary`: a Hugging Face tokenizer of a speech tokenizer's tokens."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jepa_tok.cli.common import place


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "vocabulary",
        help="tokenizer.json for Hugging Face models",
        description="Writes OUT/tokenizer.json and OUT/tokenizer_config.json: one id space for the tokens of all groups, which\n"
        "AutoTokenizer.from_pretrained(OUT) loads. docs/vocabulary.md has a worked example.",
        epilog="example: jepa-tok vocabulary my_tokenizer hf_tokenizer",
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        type=place,
        help="tokens in any format, or a tokenizer: a folder, a packaged name or a preset",
    )
    parser.add_argument("out", metavar="OUT", type=place, help="folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the two files, then prints the sizes."""
    vocabulary = _vocabulary(args.target)
    vocabulary.save_pretrained(args.out)
    print(
        f"{args.out}: {len(vocabulary)} ids: {len(vocabulary.specials)} special, "
        f"{sum(vocabulary.vocab_sizes)} of {vocabulary.num_groups} groups"
        + (f", tokenizer {vocabulary.tokenizer}" if vocabulary.tokenizer else "")
    )
    return 0


def _vocabulary(target: str) -> Any:
    from jepa_tok.hub import find_pretrained, read_folder
    from jepa_tok.presets import PRESETS, tokenizer_config
    from jepa_tok.vocabulary import Vocabulary

    path = Path(target)
    if (find_pretrained(target) and not path.exists()) or (path / "model.safetensors").exists():
        folder = read_folder(target)
        sizes = folder.config.quantizer.vocab_sizes
        return Vocabulary(tuple(sizes), tokenizer=folder.hash)
    if target in PRESETS and not path.exists():
        return Vocabulary(tuple(tokenizer_config(target).quantizer.vocab_sizes))
    from jepa_tok.corpus.formats import open_tokens

    return Vocabulary.of(open_tokens(target).metadata)
