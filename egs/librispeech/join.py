"""The manifests that the packaged tokenizers were made and measured with, of those of their corpora.

    python -m egs.librispeech.join all.jsonl librispeech.jsonl an4.jsonl kathleen.jsonl more.jsonl --dev-of librispeech
    python -m egs.librispeech.join rest.jsonl librispeech.jsonl --rest 16

The first: all rows of `split` train, and those of `split` dev whose `corpus` begins with the name that is given, so that validation is of
read English alone. The second: what `jepa-tok eval librispeech.jsonl --where split=dev --limit 16` leaves, utterances that no trial was judged
on. Paths are those of the manifests, relative where they lie below OUT's folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jepa_tok.corpus.manifest import read_corpus, write_manifest
from jepa_tok.corpus.utterance import Utterance
from jepa_tok.errors import CorpusError, JepaTokError
from jepa_tok.evaluation.run import evenly_spaced


def join(corpora: Sequence[Sequence[Utterance]], dev_of: str) -> list[Utterance]:
    """Training rows of all corpora, and dev rows of those whose name begins with `dev_of`; raises CorpusError for an id that is there twice."""
    out: dict[str, Utterance] = {}
    for u in (u for corpus in corpora for u in corpus):
        dev = u.info.get("split") == "dev" and str(u.info.get("corpus") or "").startswith(dev_of)
        if u.info.get("split") != "train" and not dev:
            continue
        if u.id in out:
            raise CorpusError(f"ids must be unique in what is joined, but '{u.id}' is there twice.")
        out[u.id] = u
    return list(out.values())


def rest(utterances: Sequence[Utterance], limit: int) -> list[Utterance]:
    """The rows of `split` dev but the `limit` evenly spaced ones that `jepa-tok eval --limit` takes."""
    dev = [u for u in utterances if u.info.get("split") == "dev"]
    taken = {u.id for u in evenly_spaced(dev, limit)}
    return [u for u in dev if u.id not in taken]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m egs.librispeech.join", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", metavar="OUT.jsonl", type=Path)
    parser.add_argument(
        "corpora", metavar="MANIFEST", nargs="+", help="with the column `split`, and `corpus` for --dev-of"
    )
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--dev-of", metavar="NAME", help="training rows of all, dev rows of corpora whose name begins so")
    how.add_argument("--rest", metavar="N", type=int, help="dev rows but the N that `jepa-tok eval --limit N` takes")
    args = parser.parse_args(argv)
    try:
        corpora = [read_corpus(path) for path in args.corpora]
        if args.rest is not None and args.rest < 1:
            raise CorpusError(f"`--rest` must be from 1 up, but is {args.rest}.")
        rows = join(corpora, args.dev_of) if args.rest is None else rest([u for c in corpora for u in c], args.rest)
        if not rows:
            raise CorpusError(f"nothing is left of {', '.join(args.corpora)}; are there rows of `split` train or dev?")
        write_manifest(rows, args.out)
    except (JepaTokError, OSError) as error:
        print(f"join: error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {len(rows)} utterances")
    return 0


if __name__ == "__main__":
    sys.exit(main())
