"""The report: every section there whatever is missing, nothing outside the page, and a browser that shows it without errors."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from jepa_tok import SpeechTokenizer
from jepa_tok.errors import CorpusError, JepaTokError
from jepa_tok.report import build_report
from jepa_tok.report.charts import Series, chart
from jepa_tok.report.media import audio_uri, log_mel, mel_position, png
from jepa_tok.report.results import read_usage, seconds_text
from jepa_tok.report.rundir import Curve, RunDir, curve

SECTIONS = ("listen", "continuation", "stage1", "stage2", "lm", "gates", "codes", "probes", "commands")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "link", "br", "img", "path", "rect", "circle", "polyline", "image", "input"}


def lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tone(seconds: float, pitch: float, rate: int = 24_000) -> np.ndarray:
    t = np.arange(round(seconds * rate)) / rate
    return (0.2 * np.sin(2 * np.pi * pitch * t) * (1 + np.sin(2 * np.pi * 3 * t))).astype(np.float32)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with a bit of everything."""
    from jepa_tok.corpus.shards import TokenShardWriter

    out = tmp_path_factory.mktemp("run")
    tokenizer = SpeechTokenizer.from_config("tiny", seed=1)
    tokenizer.save_pretrained(out / "tokenizer")
    (out / "corpus" / "wav").mkdir(parents=True)
    rows = []
    with TokenShardWriter(out / "tokens", tokenizer) as writer:
        for k, split in enumerate(("train", "dev", "test")):
            wave = tone(1.5 + 0.4 * k, 110.0 * (k + 1), 22_050)
            soundfile.write(out / "corpus" / "wav" / f"u{k}.wav", wave, 22_050)
            row = {
                "id": f"u{k}",
                "path": f"wav/u{k}.wav",
                "speaker": f"s<{k}>",
                "text": "A & B",
                "emotion": "calm",
                "split": split,
            }
            rows.append(row)
            writer.add(f"u{k}", tokenizer.encode(wave, sample_rate=22_050), speaker=row["speaker"])
    lines(out / "corpus" / "all.jsonl", rows)
    (out / "corpus" / "corpus.json").write_text(
        json.dumps(
            {
                "name": "mini",
                "note": "Synthetic: sines.",
                "minutes": 0.1,
                "splits": {"train": {"utterances": 1, "speakers": 1}},
            }
        )
    )
    steps = range(10, 110, 10)
    decay = [math.exp(-s / 40) for s in steps]
    lines(
        out / "stage1/metrics/train.jsonl",
        [
            {
                "Step": s,
                "Loss": 1 + 3 * d,
                "Prediction Loss": d,
                "Anchor Loss": 4 * d + 0.5,
                "Prediction R2": 1 - d,
            }
            for s, d in zip(steps, decay)
        ],
    )
    lines(
        out / "stage1/metrics/valid.jsonl",
        [
            {
                "Step": s,
                "Loss": 1.2 + 3 * math.exp(-s / 40),
                "Prediction R2": 0.4,
                "Between-Clip Share": 0.8,
                "Effective Rank": 9 + s / 20,
                "Std Mean": 0.8,
                "Std Min": 0.3,
                "Code Usage": 0.9,
            }
            for s in (50, 100)
        ],
    )
    lines(
        out / "stage2/metrics/train.jsonl",
        [
            {"Step": s, "L1 Loss": 0.1 * d, "STFT Loss": 2 * d, "Generator Loss": 3 * d, "Discriminator Loss": 8 * d}
            for s, d in zip(steps, decay)
        ],
    )
    lines(out / "stage2/metrics/valid.jsonl", [{"Step": 100, "L1 Loss": 0.02, "STFT Loss": 0.6, "Code Usage": 0.93}])
    lines(
        out / "lm/metrics/train.jsonl",
        [{"Step": s, "Bits/s": 400 + 200 * d, "Nats/Token": 6 + 2 * d} for s, d in zip(steps, decay)],
    )
    lines(
        out / "lm/metrics/valid.jsonl",
        [{"Step": 100, "Bits/s": 455.0, "Nats/Token": 6.4, "Unigram Bits/s": 590.0, "Bigram Time Bits/s": 520.0}],
    )
    (out / "generate" / "audio").mkdir(parents=True)
    soundfile.write(out / "generate" / "audio" / "u1.wav", tone(4.0, 150.0), 24_000)
    entry = {"prompt": "u1", "wav": "audio/u1.wav", "prompt_seconds": 1.6, "bits_per_second": 321.4, "ended": True}
    (out / "generate" / "generations.json").write_text(json.dumps([entry, {"prompt": "lost", "wav": "audio/lost.wav"}]))
    for task, metric in (("asr", "wer"), ("speaker", "accuracy"), ("emotion", "uar")):
        cell = {"mean": 0.5, "std": 0.05, "values": [0.45, 0.55]}
        low = {"mean": 0.3, "std": 0.02, "values": [0.28, 0.32]}
        result = {
            "format": "jepa-tok-probe/1",
            "task": task,
            "rows": [
                {"input": "tokens", "available": True, "metrics": {metric: cell}, "note": ""},
                {"input": "random", "available": True, "metrics": {metric: low}, "note": ""},
                {"input": "logmel", "available": False, "metrics": {}, "note": "no audio at hand"},
                {
                    "input": "chance",
                    "available": True,
                    "metrics": {metric: {"mean": 0.1, "std": 0.0, "values": [0.1]}},
                    "note": "",
                },
            ],
            "better": {metric: "lower" if metric == "wer" else "higher"},
            "seeds": [0, 1],
            "notes": [],
        }
        (out / "probes" / task).mkdir(parents=True)
        (out / "probes" / task / "results.json").write_text(json.dumps(result))
    lines(
        out / "commands.jsonl",
        [
            {"stage": k, "name": n, "command": f"python -m {n} --x '<{k}>'", "seconds": 12.5 * k, "status": 0}
            for k, n in enumerate(("corpus", "stage1", "stage2"), 1)
        ],
    )
    (out / "run.json").write_text(
        json.dumps(
            {
                "title": "jepa-tok demo <test>",
                "commit": "abc123",
                "seeds": {"all": 2},
                "machine": "2 cores",
                "date": "2026-01-01",
            }
        )
    )
    return out


@pytest.fixture(scope="module")
def page(run_dir: Path) -> Path:
    return build_report(run_dir, run_dir / "report.html")


class Reader(HTMLParser):
    """Collects ids and addresses, and checks that tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.counts: dict[str, int] = {}
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset") and value is not None:
                self.addresses.append(value)

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: Path) -> Reader:
    reader = Reader()
    reader.feed(page.read_text("utf-8"))
    return reader


def test_every_section_is_there(page: Path) -> None:
    reader = read(page)
    assert [i for i in reader.ids if i in SECTIONS] == list(SECTIONS)
    assert "not found in this run" not in reader.text and "problems" not in reader.ids
    assert reader.counts["audio"] == 3 * 2 + 1
    assert reader.counts["image"] == 3 * 2 + 1 + 1
    for text in (
        "s<0>, speaker seen in training",
        "unseen speaker (test)",
        "prompt 1.6 s, then 2.4 s of the model, 321 bit/s by its own measure, ended by the model",
        "unigram",
        "abc123",
        "<2>",
        "1 min 15 s in all",
        "0.500",
    ):
        assert text in reader.text or text in page.read_text()
    assert "By WER, these tokens do worse than an untrained tokenizer's." in reader.text
    assert "By UAR, these tokens do better" in reader.text
    assert "synthetic" in reader.text.lower()


def test_nothing_outside_the_page(page: Path) -> None:
    reader, text = read(page), page.read_text("utf-8")
    assert reader.addresses and all(a.startswith("data:") for a in reader.addresses)
    assert "script" not in reader.counts
    assert not re.search(r"url\(|@import|file:|https?://", text.replace("http-equiv", ""))
    assert "default-src 'none'" in text
    assert len(text) < 15e6
    assert str(page.parent) not in text


def test_audio_in_the_page_is_the_audio(page: Path, run_dir: Path) -> None:

    uris = [a for a in read(page).addresses if a.startswith("data:audio/wav;base64,")]
    waves = [soundfile.read(io.BytesIO(base64.b64decode(u.split(",")[1])))[0] for u in uris]
    sampled, _ = soundfile.read(run_dir / "generate" / "audio" / "u1.wav")
    assert any(len(w) == len(sampled) and np.abs(w - sampled).max() < 1e-4 for w in waves)
    assert len(waves[0]) == len(waves[1]) == math.ceil(len(tone(1.5, 1, 22_050)) * 24_000 / 22_050)


def test_another_tokenizer_and_clips_are_heard_beside_the_run(run_dir: Path, tmp_path: Path) -> None:
    other = SpeechTokenizer.from_config("tiny", seed=2)
    other.save_pretrained(tmp_path / "other")
    soundfile.write(tmp_path / "my <clip>.wav", tone(1.0, 200.0, 16_000), 16_000)
    page = build_report(run_dir, tmp_path / "r.html", str(tmp_path / "other"), [tmp_path / "my <clip>.wav"])
    reader = read(page)
    assert reader.counts["audio"] == 4 * 3 + 1  # original and two resyntheses of four clips, one continuation
    text = page.read_text()
    assert "my &lt;clip&gt;.wav" in text and other.hash in text
    assert text.count("resynthesis by this run&#x27;s tokenizer,") == 4
    assert text.count(f"resynthesis by {tmp_path / 'other'}, which this run did not train,") == 4
    made = other.decode(other.encode(tmp_path / "my <clip>.wav"))
    shown = [a for a in reader.addresses if a.startswith("data:audio/wav;base64,")][11]
    heard, _ = soundfile.read(io.BytesIO(base64.b64decode(shown.split(",")[1])))
    assert np.corrcoef(heard, made.numpy())[0, 1] > 0.999


@pytest.mark.parametrize(("compare", "clips"), [("nothing", []), (None, ["none.wav"])])
def test_what_cannot_be_compared_leaves_no_page(run_dir: Path, tmp_path: Path, compare, clips) -> None:
    with pytest.raises(JepaTokError, match=r"nothing|none\.wav"):
        build_report(run_dir, tmp_path / "r.html", compare, clips)
    assert not (tmp_path / "r.html").exists()


def test_empty_run_says_what_is_missing(tmp_path: Path) -> None:
    reader = read(build_report(tmp_path, tmp_path / "out" / "report.html"))
    assert [i for i in reader.ids if i in SECTIONS] == list(SECTIONS)
    assert reader.text.count("not found in this run") == len(SECTIONS)


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    lines(tmp_path / "stage1/metrics/train.jsonl", [{"Step": 1, "Loss": "nan"}, {"Step": 2, "Loss": 1.5}])
    with (tmp_path / "stage1/metrics/train.jsonl").open("a") as file:
        file.write('{"Step": 3, "Lo')  # cut by a kill: no fault of the run
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "config.json").write_text("[]")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "tokens-00000.parquet").write_bytes(b"PAR1")
    reader = read(build_report(tmp_path, tmp_path / "report.html"))
    assert (
        "problems" in reader.ids
        and "run.json could not be read" in reader.text
        and "tokens-00000.parquet" in reader.text
    )
    assert "train.jsonl" not in reader.text.split("Could not be read")[1]


def test_unwritable_and_missing_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="must be a folder"):
        build_report(tmp_path / "nowhere", tmp_path / "report.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(CorpusError, match="cannot be written"):
        build_report(tmp_path, tmp_path / "file" / "report.html")


def test_resumed_metrics_count_once(tmp_path: Path) -> None:
    lines(
        tmp_path / "lm/metrics/train.jsonl",
        [{"Step": s, "Loss": v} for s, v in ((1, 5.0), (2, 4.0), (3, 3.0), (2, 3.5), (3, 2.5))],
    )
    got = curve(RunDir(tmp_path).metrics("lm")["train"], "loss")
    assert (got.x, got.y) == ([1, 2, 3], [5.0, 3.5, 2.5])
    lines(
        tmp_path / "commands.jsonl",
        [dict(stage=1, name="a", command="c", seconds=s, status=st) for s, st in ((5, -9), (2, 0))],
    )
    assert [(r["seconds"], r["attempts"], r["status"]) for r in RunDir(tmp_path).commands] == [(7.0, 2, 0)]
    other = dict(stage=1, name="a", command="c", seconds=4, status=0, key="of other settings")
    with (tmp_path / "commands.jsonl").open("a") as file:
        file.write(json.dumps(other) + "\n")
    assert [(r["seconds"], r["attempts"]) for r in RunDir(tmp_path).commands] == [(4, 1)]


def test_usage_is_the_entropy_of_the_codes(run_dir: Path) -> None:
    from jepa_tok.corpus.shards import read_shards
    from jepa_tok.packing import unpack

    usage = read_usage(RunDir(run_dir))
    assert usage is not None
    codes = torch.cat([unpack(row.ids, 4, 7, dim=128) for row in read_shards(run_dir / "tokens")])
    shares = torch.nn.functional.one_hot(codes, 4).float().mean(0)
    entropy = -(shares * shares.clamp_min(1e-30).log2()).sum(1)
    assert torch.allclose(torch.tensor(usage.shares), shares, atol=1e-6)
    assert usage.bits_per_second == pytest.approx(2.5 * float(entropy.sum()), rel=1e-4)
    assert usage.capacity == 640 and usage.tokens_per_second == 47.5


def test_png_and_wav_are_what_they_say() -> None:

    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(rgb))).convert("RGB")), rgb)
    wave = torch.linspace(-2, 2, 101)
    back, rate = soundfile.read(io.BytesIO(base64.b64decode(audio_uri(wave, 8000).split(",")[1])))
    assert rate == 8000 and np.abs(back - wave.clamp(-1, 1).numpy()).max() < 1e-4


def test_spectrogram_puts_a_tone_where_the_axis_says() -> None:
    for hz in (300.0, 1000.0, 4000.0):
        mels = log_mel(torch.from_numpy(tone(1.0, hz)), 24_000)
        assert abs(mels.mean(1).argmax() / (len(mels) - 1) - mel_position(hz, 24_000)) < 0.03


def test_charts_hold_any_numbers() -> None:
    for ys in ([0.0], [5.0, 5.0], [-1e-9, 1e9], [1e-12, 2e-12], [-3.0, -2.0]):
        text = chart("x", [Series("a", Curve([float(i) for i in range(len(ys))], ys))])
        numbers = [
            float(v) for pair in re.findall(r'points="([^"]*)"', text) for xy in pair.split() for v in xy.split(",")
        ]
        assert numbers and all(0 <= v <= 380 for v in numbers)
    assert "Not among the metrics" in chart("x", [Series("a", Curve())])
    assert [seconds_text(s) for s in (0.04, 59.6, 61, 3720)] == ["0.0 s", "1 min 0 s", "1 min 1 s", "1 h 2 min"]


@pytest.mark.skipif(
    BROWSER is None, reason="no Chromium here (apt-get install chromium): the page was not opened in a browser"
)
def test_browser_shows_the_page(page: Path, tmp_path: Path) -> None:
    assert BROWSER is not None
    shot = tmp_path / "page.png"
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    base = [
        BROWSER,
        *flags.split(),
        f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr",
        "--window-size=1280,4000",
    ]
    taken = subprocess.run([*base, f"--screenshot={shot}", page.as_uri()], capture_output=True, text=True, timeout=120)
    assert shot.exists(), taken.stderr[-2000:]
    assert "CONSOLE" not in taken.stderr, [line for line in taken.stderr.splitlines() if "CONSOLE" in line]
    image = np.asarray(Image.open(shot).convert("RGB"))
    pixels = image.reshape(-1, 3)
    assert image.shape[1] == 1280 and len(np.unique(pixels[::7], axis=0)) > 100  # neither blank nor a plain error page
    dom = subprocess.run([*base, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120).stdout
    assert all(f'id="{name}"' in dom for name in SECTIONS)
