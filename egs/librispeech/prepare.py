"""LibriSpeech in its own layout -> manifests that every recipe reads.

    python -m egs.librispeech.prepare LIBRISPEECH_DIR OUT [--download SUBSET ...]

A LibriSpeech folder holds SPEAKERS.TXT and SUBSET/READER/CHAPTER/{READER-CHAPTER-NNNN.flac, READER-CHAPTER.trans.txt}. OUT gets
`train.jsonl`, `dev.jsonl`, `test.jsonl` (by the subsets' names) and `all.jsonl`: one row an utterance with id, path, duration_s,
sample_rate, corpus, speaker, gender, language, text, split (by reader, as the subsets are) and split_utt (by utterance within the
readers, for closed-set speaker identification: of each reader's chapters in order, every fifth utterance is `test`, the one
before it `dev`; these share the chapter's room and microphone with training, which helps identification).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import soundfile

from jepa_tok.errors import CorpusError, JepaTokError
from jepa_tok.files import write_text

SPLITS = ("train", "dev", "test")


def download(root: Path, subsets: list[str]) -> Path:
    """Fetches `subsets` (such as train-clean-100) by torchaudio's dataset class; returns the LibriSpeech folder."""
    from torchaudio.datasets import LIBRISPEECH

    root.mkdir(parents=True, exist_ok=True)
    for subset in subsets:
        print(f"prepare: downloading {subset} to {root}")
        try:
            LIBRISPEECH(str(root), url=subset, download=True)
        except Exception as error:  # urllib, checksum and tar errors have no common base
            raise CorpusError(f"{subset}: download failed ({error}); check the name and the connection.") from error
    return root / "LibriSpeech"


def read_genders(speakers_txt: Path) -> dict[str, str]:
    """Reader id -> F or M from SPEAKERS.TXT; empty where the file is missing (gender is then left out)."""
    if not speakers_txt.exists():
        print(f"prepare: warning: {speakers_txt} is missing; rows will have no gender", file=sys.stderr)
        return {}
    genders = {}
    for line in speakers_txt.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith(";"):
            reader, sex, *_ = (cell.strip() for cell in line.split("|"))
            genders[reader] = sex
    return genders


def read_transcripts(path: Path) -> dict[str, str]:
    """Utterance id -> text of one chapter's .trans.txt."""
    texts = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        utterance, _, text = line.strip().partition(" ")
        if not text:
            raise CorpusError(
                f"{path}:{number}: a line must be an utterance id and its words, but is '{line}' instead."
            )
        texts[utterance] = text
    return texts


def rows(root: Path, subset: str, genders: dict[str, str]) -> Iterator[dict[str, object]]:
    """The utterances of one subset, in the order of their ids."""
    split = subset.split("-")[0]
    for transcript in sorted((root / subset).glob("*/*/*.trans.txt")):
        texts = read_transcripts(transcript)
        for utterance, text in sorted(texts.items()):
            audio = transcript.parent / f"{utterance}.flac"
            try:
                info = soundfile.info(str(audio))
            except (soundfile.LibsndfileError, OSError) as error:
                raise CorpusError(f"{audio}: {transcript.name} lists it, but it cannot be read ({error}).") from error
            reader = utterance.split("-")[0]
            row: dict[str, object] = {
                "id": utterance,
                "path": str(audio.resolve()),
                "duration_s": round(info.frames / info.samplerate, 3),
                "sample_rate": info.samplerate,
                "corpus": f"librispeech/{subset}",
                "speaker": f"ls-{reader}",
                "language": "en",
                "text": text,
                "split": split,
            }
            if reader in genders:
                row["gender"] = genders[reader]
            yield row


def add_utterance_split(utterances: list[dict[str, object]]) -> None:
    """Adds `split_utt`: of each reader's utterances in order, every fifth is test and the one before it dev."""
    seen: dict[object, int] = defaultdict(int)
    for row in utterances:
        place = seen[row["speaker"]] % 5
        seen[row["speaker"]] += 1
        row["split_utt"] = {4: "test", 3: "dev"}.get(place, "train")


def write_jsonl(path: Path, utterances: list[dict[str, object]]) -> None:
    """Writes the rows at once or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in utterances))


def prepare(root: Path, out: Path) -> dict[str, int]:
    """Writes the manifests of the subsets under `root`; returns the number of utterances of each split.

    Raises CorpusError where there is no subset, a subset's name does not start with train, dev or test, or a file that a
    transcript lists is missing.
    """
    subsets = sorted({p.parent.parent.parent.name for p in root.glob("*/*/*/*.trans.txt")})
    if not subsets:
        raise CorpusError(
            f"{root}: a LibriSpeech folder must hold SUBSET/READER/CHAPTER/*.trans.txt, but none was found; "
            "name the folder that contains train-clean-100 and the like, or fetch one with --download."
        )
    genders = read_genders(root / "SPEAKERS.TXT")
    by_split: dict[str, list[dict[str, object]]] = {split: [] for split in SPLITS}
    for subset in subsets:
        split = subset.split("-")[0]
        if split not in SPLITS:
            raise CorpusError(f"{root / subset}: a subset's name must start with train, dev or test.")
        by_split[split].extend(rows(root, subset, genders))

    everything = [row for split in SPLITS for row in by_split[split]]
    add_utterance_split(everything)
    out.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        if by_split[split]:
            write_jsonl(out / f"{split}.jsonl", by_split[split])
    write_jsonl(out / "all.jsonl", everything)
    for split, utterances in by_split.items():
        if utterances:
            hours = sum(float(str(u["duration_s"])) for u in utterances) / 3600
            readers = len({u["speaker"] for u in utterances})
            print(f"prepare: {split}: {len(utterances)} utterances, {readers} readers, {hours:.2f} h")
    return {split: len(utterances) for split, utterances in by_split.items()}


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m egs.librispeech.prepare",
        description="LibriSpeech in its own layout -> manifests.",
        epilog="example: python -m egs.librispeech.prepare /corpora/LibriSpeech exp/librispeech/data",
    )
    parser.add_argument("librispeech", type=Path, help="the LibriSpeech folder (with --download: where to put it)")
    parser.add_argument("out", type=Path, help="folder for the manifests")
    parser.add_argument(
        "--download", nargs="+", metavar="SUBSET", help="fetch these subsets first, e.g. train-clean-100"
    )
    args = parser.parse_args()
    try:
        root = download(args.librispeech, args.download) if args.download else args.librispeech
        prepare(root, args.out)
    except JepaTokError as error:
        print(f"prepare: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
