"""Corpora in the layouts that their makers gave them, as rows of a manifest: id, path, speaker and what else a probe reads.

    LAYOUTS["ravdess"](Path("/corpora/RAVDESS"))  # yields {"id": ..., "path": ..., "speaker": ..., "emotion": ...}

Emotions have one name in all corpora (`happiness`, `anger`, `neutral`, `sadness`, `fear`, `disgust`, `surprise`, `boredom`,
`calm`, ...), so that a suite can pick the same classes of each. Files of names that break a corpus's convention are an error:
they would be lost in silence otherwise. No audio is opened here.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from probes.data import ProbeError

Rows = Iterator[dict[str, Any]]


def librispeech(root: Path) -> Rows:
    """SUBSET/READER/CHAPTER/*.flac and *.trans.txt: text, speaker, gender, `split` by reader, `split_utt` by utterance.

    Panayotov et al., ICASSP 2015. Raises CorpusError as `egs.librispeech.prepare` does.
    """
    from egs.librispeech import prepare

    subsets = sorted({p.parents[2].name for p in root.glob("*/*/*/*.trans.txt")})
    genders = prepare.read_genders(root / "SPEAKERS.TXT") if subsets else {}
    everything = [row for subset in subsets for row in prepare.rows(root, subset, genders)]
    prepare.add_utterance_split(everything)
    yield from everything


EMODB = {
    "W": "anger", "L": "boredom", "E": "disgust", "A": "fear", "F": "happiness", "T": "sadness", "N": "neutral",
}  # fmt: skip
EMODB_MEN = ("03", "10", "11", "12", "15")


def emodb(root: Path) -> Rows:
    """`03a01Fa.wav`: speaker 03, sentence a01, emotion F (Freude), take a. Burkhardt et al., Interspeech 2005."""
    for path, (speaker, sentence, letter) in _named(root, r"(\d\d)([ab]\d\d)([WLEAFTN])[a-z]", "03a01Fa.wav"):
        yield {
            "id": path.stem,
            "path": str(path),
            "speaker": f"emodb-{speaker}",
            "gender": "M" if speaker in EMODB_MEN else "F",
            "language": "de",
            "label": sentence,
            "emotion": EMODB[letter],
        }


RAVDESS = ("neutral", "calm", "happiness", "sadness", "anger", "fear", "disgust", "surprise")


def ravdess(root: Path) -> Rows:
    """`03-01-05-02-01-02-12.wav`: modality, channel, emotion, intensity, statement, repetition, actor (odd ones are men).

    Speech alone (channel 01): songs (02) are another task. Livingstone and Russo, PLOS ONE 2018,
    doi:10.1371/journal.pone.0196391.
    """
    pattern = r"(0[123])-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(\d\d)"
    for path, (_, channel, emotion, _, statement, _, actor) in _named(root, pattern, "03-01-05-02-01-02-12.wav"):
        if channel == "01":
            yield {
                "id": path.stem,
                "path": str(path),
                "speaker": f"ravdess-{actor}",
                "gender": "M" if int(actor) % 2 else "F",
                "language": "en",
                "label": statement,
                "emotion": RAVDESS[int(emotion) - 1],
            }


CREMA_D = {
    "ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happiness", "NEU": "neutral", "SAD": "sadness",
}  # fmt: skip


def crema_d(root: Path) -> Rows:
    """`1001_DFA_ANG_XX.wav`: actor, sentence, emotion, level; genders from VideoDemographics.csv where it is there.

    Cao et al., IEEE Transactions on Affective Computing 2014, doi:10.1109/TAFFC.2014.2336244.
    """
    genders = {}
    table = root / "VideoDemographics.csv"
    if table.is_file():
        with table.open(newline="", encoding="utf-8-sig") as file:
            genders = {row["ActorID"]: row["Sex"][:1].upper() for row in csv.DictReader(file)}
    pattern = r"(\d{4})_([A-Z]{3})_(ANG|DIS|FEA|HAP|NEU|SAD)_(LO|MD|HI|XX|X)"
    for path, (actor, sentence, emotion, _) in _named(root, pattern, "1001_DFA_ANG_XX.wav"):
        row = {
            "id": path.stem,
            "path": str(path),
            "speaker": f"crema_d-{actor}",
            "language": "en",
            "label": sentence,
            "emotion": CREMA_D[emotion],
        }
        yield row | ({"gender": genders[actor]} if actor in genders else {})


IEMOCAP = {
    "ang": "anger", "hap": "happiness", "exc": "excitement", "neu": "neutral", "sad": "sadness", "fru": "frustration",
    "fea": "fear", "sur": "surprise", "dis": "disgust", "oth": "other", "xxx": "undecided",
}  # fmt: skip


def iemocap(root: Path) -> Rows:
    """Session*/dialog/EmoEvaluation/*.txt and Session*/sentences/wav: five sessions of two speakers each.

    A turn's emotion is what the annotators agreed on (`undecided` where they did not). Busso et al., Language Resources and
    Evaluation 2008, doi:10.1007/s10579-008-9076-6. Raises ProbeError for an unknown emotion and a turn without its file.
    """
    turn = re.compile(r"^\[(\d+\.\d+) - (\d+\.\d+)\]\t(Ses(\d\d)[FM]_\w+_([FM])\d+)\t(\w+)\t")
    for labels in sorted(root.glob("Session*/dialog/EmoEvaluation/Ses*.txt")):
        session = labels.parents[2]
        texts = _iemocap_texts(session / "dialog" / "transcriptions" / labels.name)
        for line in labels.read_text(encoding="utf-8", errors="replace").splitlines():
            found = turn.match(line)
            if found is None:
                continue
            _, _, name, number, gender, emotion = found.groups()
            if emotion not in IEMOCAP:
                raise ProbeError(
                    f"{labels}: the emotion of {name} must be one of {', '.join(IEMOCAP)}, but is {emotion}."
                )
            row = {
                "id": name,
                "path": str(session / "sentences" / "wav" / labels.stem / f"{name}.wav"),
                "speaker": f"iemocap-{number}{gender}",
                "gender": gender,
                "language": "en",
                "session": session.name,
                "emotion": IEMOCAP[emotion],
            }
            yield row | ({"text": texts[name]} if name in texts else {})


def _iemocap_texts(path: Path) -> dict[str, str]:
    """Turn -> words, from lines such as `Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.`."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found = (re.match(r"^(\w+) \[[\d.]+-[\d.]+\]: (.*\S)", line) for line in lines)
    return {m[1]: m[2] for m in found if m}


def _named(root: Path, pattern: str, example: str) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Audio files under `root` in the order of their names, with the parts of each name."""
    files = (p for p in root.rglob("*") if p.suffix.lower() in (".wav", ".flac", ".ogg", ".opus") and p.is_file())
    for path in sorted(files, key=lambda p: (p.stem, str(p))):
        found = re.fullmatch(pattern, path.stem)
        if found is None:
            raise ProbeError(f"'{path}' must be named as `{example}` is, but is not; keep other audio elsewhere.")
        yield path, found.groups()


LAYOUTS: dict[str, Callable[[Path], Rows]] = {
    "librispeech": librispeech,
    "emodb": emodb,
    "ravdess": ravdess,
    "crema_d": crema_d,
    "iemocap": iemocap,
}
