"""`jepa-tok resynth`: audio to tokens and back, to hear what the tokens hold."""

from __future__ import annotations

import argparse
from typing import Any

from jepa_tok.cli.common import (
    add_overwrite_option,
    add_tokenizer_options,
    check_output,
    duration,
    file_path,
    load_tokenizer,
)


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "resynth",
        help="audio to tokens and back to audio",
        description="Encodes an audio file and decodes the tokens, to hear what they hold.",
        epilog="example: jepa-tok resynth in.wav out.wav --tokenizer my_tokenizer",
    )
    parser.add_argument("input", metavar="IN", type=file_path, help="audio: wav, flac, ogg, opus, mp3, ...")
    parser.add_argument("output", metavar="OUT", type=file_path, help="a .wav or .flac file")
    add_overwrite_option(parser)
    add_tokenizer_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Encodes, decodes, writes."""
    from jepa_tok.audio import AudioFile, save_audio
    from jepa_tok.errors import AudioError

    check_output(args.output, args.overwrite, [args.input])
    if args.output.suffix.lower() not in (".wav", ".flac"):
        raise AudioError(f"'{args.output}' must end in .wav or .flac, but ends in '{args.output.suffix}' instead.")
    next(iter(AudioFile(args.input)))  # before the model: a bad path answers at once
    tokenizer = load_tokenizer(args)
    tokens = tokenizer.encode(args.input)
    save_audio(args.output, tokenizer.decode_blocks(tokens), tokenizer.sample_rate)
    seconds = tokens.num_samples / tokenizer.sample_rate
    print(
        f"{args.output}: {duration(seconds)}, {len(tokens)} frames, {tokens.ids.numel()} tokens "
        f"({tokenizer.frame_rate * tokenizer.num_groups:g} a second), tokenizer {tokenizer.hash}"
    )
    return 0
