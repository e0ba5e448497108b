"""Beam search against all paths, language models that settle what the sound leaves open, and the LSTM head."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from probes import ctc, decoding, heads
from probes.data import ProbeError
from probes.decoding import Search, make_decoder
from probes.text import Characters, SentencePieces

ARPA = (
    "\\data\\\nngram 1={n}\nngram 2=1\n\n\\1-grams:\n-9\t<unk>\n-99\t<s>\t0\n-1\t</s>\n{lines}\n"
    "\\2-grams:\n-1\t<s> </s>\n\n\\end\\\n"
)


@pytest.fixture
def beam() -> None:
    pytest.importorskip("flashlight.lib.text.decoder")


def _arpa(path: Path, words: dict[str, float]) -> str:
    lines = "".join(f"{score}\t{word}\t0\n" for word, score in words.items())
    path.write_text(ARPA.format(n=len(words) + 3, lines=lines))
    return str(path)


def _log_probs(units: Characters, *positions: dict[str, float]) -> torch.Tensor:
    """Positions that tell the probability of each character, `-` for the blank."""
    out = torch.full((len(positions), units.size + 1), 1e-6)
    for p, row in zip(out, positions):
        for c, share in row.items():
            p[0 if c == "-" else 1 + units.alphabet.index(c)] = share
    return out.log()


@pytest.mark.parametrize("seed", range(8))
def test_beam_finds_the_text_of_the_most_probable_paths(seed: int, beam: None) -> None:
    units = Characters(["ab"])
    log_probs = (torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)
    total: dict[str, float] = defaultdict(float)
    for path in itertools.product(range(3), repeat=6):
        text = units.decode([u - 1 for u in ctc.collapse(path)])
        total[text] += math.exp(sum(float(log_probs[t, u]) for t, u in enumerate(path)))
    assert make_decoder(units, Search(200))(log_probs) == max(total, key=total.__getitem__)


def test_beam_and_greedy_differ_where_paths_add_up(beam: None) -> None:
    units = Characters(["a"])
    log_probs = _log_probs(units, {"-": 0.6, "a": 0.4}, {"-": 0.6, "a": 0.4})  # nothing: 0.36, a: 0.64
    assert make_decoder(units, Search())(log_probs) == ""
    assert make_decoder(units, Search(4))(log_probs) == "a"


def test_words_of_a_language_model_are_kept_to(tmp_path: Path, beam: None) -> None:
    pytest.importorskip("kenlm")
    units = Characters(["cat mat"])
    open_ = {"c": 0.49, "m": 0.51}
    log_probs = _log_probs(units, open_, {"a": 1}, {"t": 1}, {" ": 1}, {"a": 1}, {"-": 1}, {"t": 1}, {"-": 1})
    assert make_decoder(units, Search())(log_probs) == "mat at"
    lm = _arpa(tmp_path / "w.arpa", {"CAT": -0.5, "MAT": -3.0, "AT": -0.5})
    assert make_decoder(units, Search(32, 0.0), lm)(log_probs) == "mat at"
    assert make_decoder(units, Search(32, 2.0), lm)(log_probs) == "cat at"


def test_units_of_a_language_model_are_weighed(tmp_path: Path, beam: None) -> None:
    pytest.importorskip("kenlm")
    units = Characters(["cat mat"])
    log_probs = _log_probs(units, {"c": 0.49, "m": 0.51}, {"a": 1}, {" ": 1}, {"t": 1})
    lm = _arpa(tmp_path / "c.arpa", {"c": -0.5, "m": -3.0, "a": -0.5, "t": -0.5, "|": -0.5})
    assert make_decoder(units, Search(32, 0.0), lm)(log_probs) == "ma t"
    assert make_decoder(units, Search(32, 2.0), lm)(log_probs) == "ca t"


def test_pieces_are_searched_too(tmp_path: Path, beam: None) -> None:
    units = SentencePieces(["the cat sat on the mat", "a mat sat"] * 8, 25)
    spelled = [u + 1 for u in units.encode("the cat")]
    path = [x for u in spelled for x in (u, 0)]
    log_probs = torch.full((len(path), units.size + 1), -12.0)
    log_probs[range(len(path)), path] = -0.01
    assert make_decoder(units, Search())(log_probs) == "the cat"
    assert make_decoder(units, Search(16))(log_probs) == "the cat"
    pytest.importorskip("kenlm")
    lm = _arpa(tmp_path / "w.arpa", {"the": -1.0, "cat": -1.0, "mat": -1.0})
    assert make_decoder(units, Search(16, 0.5), lm)(log_probs) == "the cat"


def test_what_beams_need_is_told(tmp_path: Path, beam: None) -> None:
    pytest.importorskip("kenlm")
    broken = tmp_path / "lm.arpa"
    broken.write_text("no ARPA")
    with pytest.raises(ProbeError, match="must be an ARPA file with 1-grams"):
        make_decoder(Characters(["ab"]), Search(8, 1.0), str(broken))
    with pytest.raises(ProbeError, match="words that the units can spell"):
        make_decoder(Characters(["ab"]), Search(8, 1.0), _arpa(tmp_path / "w.arpa", {"dog": -1.0}))
    with pytest.raises(ProbeError, match="there is no file"):
        decoding.check("beam", str(tmp_path / "absent"))
    with pytest.raises(ProbeError, match="must go with the decoder `beam`"):
        decoding.check("greedy", str(broken))


def _lstm(slots: int = 3) -> heads.LSTMHead:
    return heads.LSTMHead(torch.zeros(4), torch.ones(4), slots, 5, 0).eval()


def test_lstm_does_not_see_padding() -> None:
    head = _lstm()
    x = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    both = head(x, torch.tensor([2, 4]))
    assert both.shape == (12, 2, 5)
    assert torch.allclose(both[:6, 0], head(x[:1, :2], torch.tensor([2]))[:, 0], atol=1e-5)
    assert torch.allclose(both.exp().sum(-1), torch.ones(12, 2), atol=1e-5)


def test_lstm_learns_what_no_single_frame_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """The label of a clip is in its first frame and is to be said in its last, far out of a linear head's context."""
    monkeypatch.setattr(heads, "LSTM_UNITS", 24)
    rng = np.random.default_rng(0)
    frames = [np.eye(4, dtype=np.float32)[[k % 2, *rng.integers(2, 4, 6)]] for k in range(40)]
    clips = ctc.Clips(frames, lambda x: x, [[3, 1 + k % 2] for k in range(40)], 1)
    options = {"size": 4, "context": 0, "epochs": 10, "lr": 0.01, "decay": 0.01, "seed": 0, "device": "cpu"}
    head, _ = ctc.train(clips, range(30), range(30, 40), kind="bilstm", **options)
    guess = [ctc.collapse(x.argmax(-1).tolist()) for x in ctc.emissions(head, clips, range(30, 40), "cpu")]
    assert guess == clips.labels[30:]
