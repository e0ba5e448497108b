"""Sections of the page that are heard: original and resynthesis, prompt and continuation, DAAM gates over a spectrogram."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jepa_tok.audio import SAMPLE_RATE
from jepa_tok.errors import JepaTokError
from jepa_tok.report import media
from jepa_tok.report.rundir import RunDir, number
from jepa_tok.report.training import missing, section

if TYPE_CHECKING:
    from jepa_tok.corpus.manifest import Utterance
    from jepa_tok.tokenizer import SpeechTokenizer

LONGEST = 10.0
"""Seconds of an utterance that go into the page."""

CONTINUATIONS = 3


def load_tokenizer(run: RunDir) -> SpeechTokenizer | None:
    """The run's tokenizer, None where there is none."""
    if not (run.path / "tokenizer" / "config.json").is_file():
        return None
    from jepa_tok.tokenizer import SpeechTokenizer

    try:
        return SpeechTokenizer.from_pretrained(run.path / "tokenizer")
    except JepaTokError as error:
        run.problems.append(str(error))
        return None


def choose(utterances: Sequence[Utterance], count: int = 3) -> list[Utterance]:
    """One utterance of each split where the manifest has splits, spread evenly; the same ones each time."""
    splits = [s for s in ("train", "dev", "test") if any(u.info.get("split") == s for u in utterances)]
    if len(splits) < 2:
        return [utterances[(2 * k + 1) * len(utterances) // (2 * count)] for k in range(min(count, len(utterances)))]
    chosen = []
    for k, split in enumerate(splits):
        own = [u for u in utterances if u.info.get("split") == split]
        speakers = list(dict.fromkeys(str(u.info.get("speaker")) for u in own))
        own = [u for u in own if str(u.info.get("speaker")) == speakers[len(speakers) // 2]]
        # Another style of speech in each card, where the manifest names styles.
        styles = list(dict.fromkeys(str(u.info.get("emotion")) for u in own))
        chosen.append(next(u for u in own if str(u.info.get("emotion")) == styles[k % len(styles)]))
    return chosen


def utterances(run: RunDir) -> list[Utterance]:
    """The manifest's utterances; empty where there is none."""
    if run.manifest is None:
        return []
    from jepa_tok.corpus.manifest import read_corpus

    try:
        return list(read_corpus(run.manifest))
    except JepaTokError as error:
        run.problems.append(str(error))
        return []


@dataclass(frozen=True)
class Comparison:
    """What the page lets hear beside the run's own."""

    tokenizer: SpeechTokenizer | None = None
    """Another tokenizer, which the run did not train."""
    name: str = ""
    """What that one is called on the page."""
    clips: Sequence[tuple[str, Tensor]] = ()
    """Clips that are not of the run's corpus: a name, and samples [S] at 24 kHz."""


def load_comparison(tokenizer: str | None, clips: Sequence[str | os.PathLike[str]]) -> Comparison:
    """Reads both; raises ConfigError for an unknown tokenizer, AudioError for a clip that cannot be read."""
    from jepa_tok.audio import load_audio
    from jepa_tok.tokenizer import SpeechTokenizer

    other = None if tokenizer is None else SpeechTokenizer.from_pretrained(tokenizer)
    waves = [(Path(clip).name, load_audio(clip, SAMPLE_RATE, end=LONGEST)) for clip in clips]
    return Comparison(other, tokenizer or "", waves)


def resynthesis(
    run: RunDir, tokenizer: SpeechTokenizer | None, corpus: Sequence[Utterance], comparison: Comparison | None = None
) -> str:
    """Original and resynthesis of three utterances and of the clips to compare, one picture and one player each."""
    title = "Listen: original and resynthesis"
    comparison = comparison or Comparison()
    other = comparison.tokenizer
    makers: list[tuple[str, SpeechTokenizer]] = []
    if tokenizer is not None:
        makers.append(("resynthesis" if other is None else "resynthesis by this run's tokenizer", tokenizer))
    if other is not None:
        makers.append((f"resynthesis by {comparison.name}, which this run did not train", other))
    if not makers:
        return section("listen", title, missing("A tokenizer", "tokenizer/"))
    if not corpus and not comparison.clips:
        return section("listen", title, missing("A manifest of utterances", "corpus/all.jsonl"))
    cards = []
    for utterance in choose(corpus) if corpus else []:
        words = utterance.info.get("text")
        text = str(words).capitalize() + "." if words else ""
        try:
            wave = load(utterance, SAMPLE_RATE)
            cards.append(_card(_who(utterance), text, wave, makers))
        except JepaTokError as error:
            run.problems.append(str(error))
    for name, wave in comparison.clips:
        cards.append(_card(name, "A clip named with --clip.", wave, makers))
    body = f'<div class="cards">{"".join(cards)}</div>' if cards else missing("Readable audio", "the manifest's paths")
    lead = "Speech to tokens and back. All pictures of this page share one colour scale (log-mel, 0 to 12 kHz)."
    if other is not None:
        own = f" This run's tokenizer is {tokenizer.config.name} ({tokenizer.hash})." if tokenizer is not None else ""
        lead += f"{escape(own)} Beside it, for comparison, {escape(comparison.name)} ({other.hash}), which this run did not train."
    return section("listen", title, body, lead)


def _card(title: str, words: str, wave: Tensor, makers: Sequence[tuple[str, SpeechTokenizer]]) -> str:
    """A clip [S] at 24 kHz and what each tokenizer makes of it."""
    heard = [("original", "original", wave, SAMPLE_RATE)]
    for what, tokenizer in makers:
        tokens = tokenizer.encode(wave, SAMPLE_RATE)
        count = f"from {len(tokens)} &times; {tokenizer.num_groups} = {tokens.ids.numel()} tokens"
        heard.append((what, f"{escape(what)}, {count}", tokenizer.decode(tokens), tokenizer.sample_rate))
    parts = [
        f'<p class="what">{told}</p>{media.spectrogram(made, rate)}{media.player(made, rate, escape(what))}'
        for what, told, made, rate in heard
    ]
    return f'<div class="card"><h3>{escape(title)}</h3><p class="words">{escape(words)}</p>{"".join(parts)}</div>'


def load(utterance: Utterance, sample_rate: int) -> Tensor:
    """The utterance's audio [S], cut to its segment and to `LONGEST` seconds."""
    from jepa_tok.corpus.audio_source import load_utterance

    end = (utterance.start or 0.0) + LONGEST
    return load_utterance(utterance, sample_rate, end=end if utterance.end is None else min(end, utterance.end))


def continuation(run: RunDir) -> str:
    """What the language model says after a prompt."""
    title = "Listen: the language model continues"
    found = find_continuations(run)
    if not found:
        return section("continuation", title, missing("Continuations", "generate/generations.json"))
    from jepa_tok.audio import load_audio

    found = found[:CONTINUATIONS]
    width = 1060 if len(found) == 1 else 460
    cards = []
    for path, told in found:
        rate = 24_000
        try:
            wave = load_audio(path, rate)[: 2 * round(LONGEST * rate)]
        except JepaTokError as error:
            run.problems.append(str(error))
            continue
        seconds, prompt = len(wave) / rate, number(told.get("prompt_seconds"))
        marks = [(prompt, "continuation")] if prompt is not None and 0 < prompt < seconds else []
        cards.append(
            f'<div class="card"><h3>{escape(str(told.get("prompt") or path.stem))}</h3><p class="words">{escape(_words(told, seconds))}</p>'
            f"{media.spectrogram(wave, rate, marks=marks, width=width)}{media.player(wave, rate, 'prompt and continuation')}</div>"
        )
    body = f'<div class="cards">{"".join(cards)}</div>' if cards else missing("Readable audio", "generate/")
    return section(
        "continuation",
        title,
        body,
        "The prompt is the resynthesis of real tokens; from the line on, every token is sampled.",
    )


def find_continuations(run: RunDir) -> list[tuple[Path, dict[str, Any]]]:
    """WAV files of prompt and continuation, with what generate/generations.json tells of each (else every WAV there)."""
    folder = run.path / "generate"
    told = run.json("generate/generations.json")
    if not isinstance(told, list):
        return [(path, {}) for path in sorted(folder.rglob("*.wav"))]
    rows = [row for row in told if isinstance(row, dict) and row.get("wav")]
    return [(folder / str(row["wav"]), row) for row in rows if (folder / str(row["wav"])).is_file()]


def _words(told: dict[str, Any], seconds: float) -> str:
    """What is known of a continuation, in a line."""
    prompt, bits = number(told.get("prompt_seconds")), number(told.get("bits_per_second"))
    if prompt is None:
        return f"{seconds:.1f} s"
    text = f"prompt {prompt:.1f} s, then {max(seconds - prompt, 0.0):.1f} s of the model"
    if bits is not None:
        text += f", {bits:.0f} bit/s by its own measure"
    return text + (", ended by the model" if told.get("ended") else ", cut at the limit" if "ended" in told else "")


def gates(run: RunDir, tokenizer: SpeechTokenizer | None, corpus: Sequence[Utterance]) -> str:
    """The gate of each encoder stage over the spectrogram of an unseen utterance."""
    title = "What the encoder attends to: DAAM gates"
    if tokenizer is None or not corpus:
        return section("gates", title, missing("A tokenizer and a manifest", "tokenizer/ and corpus/all.jsonl"))
    utterance = choose(corpus)[-1]
    try:
        wave = load(utterance, tokenizer.sample_rate)
        values = tokenizer.gates(wave, sample_rate=tokenizer.sample_rate)
    except JepaTokError as error:
        run.problems.append(str(error))
        return section("gates", title, missing("Readable audio", "the manifest's paths"))
    if not values:
        return section("gates", title, '<p class="missing">This encoder has no DAAM gates.</p>')
    alphas = _alphas(tokenizer)
    hops = _hops(tokenizer)
    keys = []
    for stage, gate in enumerate(values):
        gain = 1.0 + (alphas[stage] if stage < len(alphas) else 0.0) * gate
        keys.append(
            f"<tr><td>stage {stage + 1}</td><td class=n>{len(gate)}</td><td class=n>{1000 * hops[stage] / tokenizer.sample_rate:.0f} ms</td>"
            f"<td class=n>{float(gate.mean()):.2f} <span class=dev>({float(gate.min()):.2f} to {float(gate.max()):.2f})</span></td>"
            f"<td class=n>{float(gain.min()):.3f} to {float(gain.max()):.3f}</td></tr>"
        )
    picture = media.spectrogram(
        wave, tokenizer.sample_rate, over=_lanes(values, [hop / len(wave) for hop in hops]), width=1060, height=280
    )
    table = f"<div class=scroll><table><thead><tr><th>gate<th class=n>steps<th class=n>step<th class=n>density, mean (range)<th class=n>gain 1 + &alpha;g</tr></thead><tbody>{''.join(keys)}</tbody></table></div>"
    lead = (
        f"{escape(_who(utterance))}. One lane a stage, from the first (bottom) to the last (top), each from 0 to its own maximum: high where a step is "
        "typical of its clip, low where it stands out. The encoder multiplies each step by 1 + &alpha; &middot; gate."
    )
    return section("gates", title, f'<figure class="broad gatefig">{picture}{table}</figure>', lead)


def _lanes(values: Sequence[Tensor], steps: Sequence[float]) -> str:
    """Step lines in lanes of the unit square, light on dark so that they show over any colour; `steps` are widths."""
    parts = []
    height = 1.0 / len(values)
    for stage, gate in enumerate(values):
        base = 1.0 - stage * height
        scaled = (gate / gate.max().clamp_min(1e-9)).tolist()
        n = len(scaled)
        points = [
            f"{(k + side) / n:.4f} {base - 0.9 * height * v:.4f}" for k, v in enumerate(scaled) for side in (0, 1)
        ]
        path = "M" + "L".join(points)
        for colour, width in (("#0a0c20", 4.5), ("#7df9d0", 1.8)):
            parts.append(
                f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}" vector-effect="non-scaling-stroke" stroke-linejoin="round"/>'
            )
        if stage:
            parts.append(
                f'<path d="M0 {base:.4f}H1" stroke="#ffffff" stroke-opacity="0.35" stroke-width="1" vector-effect="non-scaling-stroke"/>'
            )
    return "".join(parts)


def _hops(tokenizer: SpeechTokenizer) -> list[int]:
    """Samples per step after each encoder stage."""
    encoder = tokenizer.config.encoder
    return [encoder.front_hop * math.prod(encoder.strides[: stage + 1]) for stage in range(len(encoder.strides))]


def _alphas(tokenizer: SpeechTokenizer) -> list[float]:
    from jepa_tok.models.daam import DaamGate

    with torch.no_grad():
        return [float(m.alpha) for m in tokenizer.encoder.modules() if isinstance(m, DaamGate)]


def _who(utterance: Utterance) -> str:
    info = utterance.info
    split = {"train": "speaker seen in training", "dev": "unseen speaker (dev)", "test": "unseen speaker (test)"}
    parts = [
        str(info.get("speaker") or utterance.id),
        split.get(str(info.get("split")), ""),
        str(info.get("emotion") or ""),
    ]
    return ", ".join(p for p in parts if p)
