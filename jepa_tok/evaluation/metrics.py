"""What is measured of a resynthesis beside its original: one class a metric, and the registry of all.

A metric gives one or more columns. What cannot be measured of an utterance is a failure with its reason, never a number.

S samples   L steps
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from jepa_tok.evaluation.clip import Clip
from jepa_tok.models.logmel import LogMel


@dataclass(frozen=True)
class Column:
    """A figure that a metric gives."""

    title: str
    better: str
    """`higher` or `lower`."""

    versa: str | None = None
    """What it is called in VERSA's files: the name that VERSA has for the same, or one that it has for nothing; None: ours."""


@dataclass
class Scores:
    """What a metric finds of one utterance: for each of its columns a value or a failure."""

    values: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    """Of a column in the mean over utterances; 1 where there is none."""

    failures: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    """Counts and texts for whoever looks at single utterances."""

    def merge(self, other: Scores) -> None:
        """Takes over what another metric found."""
        self.values |= other.values
        self.weights |= other.weights
        self.failures |= other.failures
        self.details |= other.details


class CannotMeasure(Exception):
    """An utterance has not what a metric needs; says what in one line."""


class Metric(ABC):
    """Base of all; making one loads its models, which may raise ImportError."""

    name: ClassVar[str]
    columns: ClassVar[dict[str, Column]]
    packages: ClassVar[tuple[str, ...]] = ()
    """Modules that it imports."""

    install: ClassVar[str] = ""
    """Command that brings them."""

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot be had here, or None."""
        if all(find_spec(package) for package in cls.packages):
            return None
        return f"not available: {cls.install}"

    @abstractmethod
    def score(self, original: Clip, output: Clip) -> Scores:
        """Both clips have the same rate and length. Raises CannotMeasure where no column has a value."""


class Pesq(Metric):
    """PESQ, wide band, at 16 kHz (ITU-T P.862.2): 1.04 to 4.64."""

    name = "pesq"
    columns: ClassVar = {"pesq": Column("PESQ-WB", "higher", "pesq")}
    packages = ("pesq",)
    install = "pip install pesq (needs a C compiler)"

    def __init__(self) -> None:
        import pesq

        self._pesq = pesq

    def score(self, original: Clip, output: Clip) -> Scores:
        for clip in (original, output):  # the package divides by the peak
            _check_sound(clip)
        try:
            value = self._pesq.pesq(16_000, original.at(16_000), output.at(16_000), "wb")
        except self._pesq.PesqError as error:  # no utterance found, shorter than a quarter of a second, ...
            raise CannotMeasure(_said(error)) from None
        return Scores({"pesq": float(value)})


class Stoi(Metric):
    """STOI (Taal et al., 2011, DOI 10.1109/TASL.2011.2114881) and ESTOI (Jensen and Taal, 2016, DOI 10.1109/TASLP.2016.2585878)."""

    name = "stoi"
    columns: ClassVar = {"stoi": Column("STOI", "higher", "stoi"), "estoi": Column("ESTOI", "higher", "estoi")}
    packages = ("pystoi",)
    install = "pip install pystoi"

    def __init__(self) -> None:
        from pystoi import stoi

        self._stoi = stoi

    def score(self, original: Clip, output: Clip) -> Scores:
        a, b = original.wave.numpy(), output.wave.numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # too few frames give 1e-5 and a warning
            try:
                values = {
                    key: float(self._stoi(a, b, original.sample_rate, extended=key == "estoi")) for key in self.columns
                }
            except RuntimeWarning as warning:
                raise CannotMeasure(_said(warning)) from None
        return Scores(values)


class Dnsmos(Metric):
    """DNSMOS P.835 and P.808 (Reddy et al., 2021 and 2022, DOI 10.1109/ICASSP43922.2022.9746108), of the output alone."""

    name = "dnsmos"
    columns: ClassVar = {
        "dnsmos": Column("DNSMOS", "higher", "dns_overall"),
        "dnsmos_p808": Column("DNSMOS P.808", "higher", "dns_p808"),
    }
    packages = ("speechmos", "onnxruntime", "librosa")
    install = "pip install speechmos onnxruntime librosa requests"

    def __init__(self) -> None:
        from speechmos import dnsmos

        self._run = dnsmos.run

    def score(self, original: Clip, output: Clip) -> Scores:
        found = self._run(output.at(16_000), 16_000)
        return Scores({"dnsmos": float(found["ovrl_mos"]), "dnsmos_p808": float(found["p808_mos"])})


class Speaker(Metric):
    """Cosine between the speaker embeddings of Resemblyzer (generalised end-to-end loss: arXiv 1710.10467).

    Silence is cut out first, as that package does. Two voices already have a cosine of .5 or so: read it beside the row of
    another utterance.
    """

    name = "speaker"
    columns: ClassVar = {"speaker": Column("speaker similarity", "higher", "spk_similarity")}
    packages = ("resemblyzer", "webrtcvad", "librosa")
    install = "pip install librosa webrtcvad-wheels && pip install --no-deps resemblyzer"

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it imports from an old place of SciPy
            import resemblyzer
        # Its weights are a torch pickle inside the package, which torch.load reads with weights_only.
        self._encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)
        self._preprocess = resemblyzer.preprocess_wav

    def score(self, original: Clip, output: Clip) -> Scores:
        a, b = original.once("voice", self._embed), output.once("voice", self._embed)
        return Scores({"speaker": float(a @ b)})

    def _embed(self, clip: Clip) -> np.ndarray:
        _check_sound(clip)
        voiced = self._preprocess(clip.at(16_000))
        if not len(voiced):
            raise CannotMeasure("no voice found")
        return self._encoder.embed_utterance(voiced)


class Mel(Metric):
    """Mean absolute difference of log-mel magnitudes in dB: 80 filters to half the sample rate, 1024-sample windows, 10 ms steps.

    It hears loudness and bandwidth: codecs at 8 kHz lose by it what they never send.
    """

    name = "mel"
    columns: ClassVar = {"mel_db": Column("log-mel distance, dB", "lower")}
    TO_DB = 20.0 / math.log(10.0) * LogMel.DEVIATION

    def score(self, original: Clip, output: Clip) -> Scores:
        a, b = original.once("logmel", self._logmel), output.once("logmel", self._logmel)
        return Scores({"mel_db": float((a - b).abs().mean()) * self.TO_DB})

    @staticmethod
    def _logmel(clip: Clip) -> Tensor:
        return LogMel(clip.sample_rate, 1024, clip.sample_rate // 100, 80)(clip.wave[None])  # [1, L, 80]


class F0(Metric):
    """Pitch by probabilistic YIN (Mauch and Dixon, 2014, DOI 10.1109/ICASSP.2014.6853678; librosa's), 60 to 500 Hz, 10 ms steps.

    `f0_corr`: correlation of log F0 over steps that are voiced in both; `voicing_error`: share of steps where one is voiced
    and the other not.
    """

    name = "f0"
    columns: ClassVar = {
        "f0_corr": Column("F0 correlation", "higher", "f0_corr_log_voiced"),  # VERSA's f0_corr is in Hz, and warps time
        "voicing_error": Column("voicing error", "lower"),
    }
    packages = ("librosa",)
    install = "pip install librosa"
    MIN_STEPS = 10

    def __init__(self) -> None:
        import librosa

        self._pyin = librosa.pyin

    def score(self, original: Clip, output: Clip) -> Scores:
        a, voiced_a = original.once("f0", self._track)
        b, voiced_b = output.once("f0", self._track)
        scores = Scores({"voicing_error": float((voiced_a != voiced_b).mean())})
        both = voiced_a & voiced_b
        x, y = np.log(a[both]), np.log(b[both])
        if both.sum() < self.MIN_STEPS or x.std() == 0.0 or y.std() == 0.0:
            scores.failures["f0_corr"] = f"fewer than {self.MIN_STEPS} steps voiced in both, or a constant pitch"
        else:
            scores.values["f0_corr"] = float(np.corrcoef(x, y)[0, 1])
        return scores

    def _track(self, clip: Clip) -> tuple[np.ndarray, np.ndarray]:
        f0, voiced, _ = self._pyin(
            clip.at(16_000), fmin=60.0, fmax=500.0, sr=16_000, frame_length=1024, hop_length=160, resolution=0.2
        )
        return f0, voiced


def _check_sound(clip: Clip) -> None:
    if not bool(clip.wave.any()):
        raise CannotMeasure("digital silence")


def _said(error: BaseException) -> str:
    said = error.args[0] if error.args else ""
    text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    return " ".join(text.split()) or type(error).__name__


def registry() -> dict[str, type[Metric]]:
    """All metrics by name, in the order of the table."""
    from jepa_tok.evaluation.recognition import Wer

    metrics: list[type[Metric]] = [Stoi, Pesq, Speaker, Dnsmos, Wer, F0, Mel]
    return {metric.name: metric for metric in metrics}
