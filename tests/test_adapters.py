"""Adapters: finding them, those of this package, and one from scratch."""

from __future__ import annotations

import importlib.metadata
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jepa_tok import SpeechTokenizer
from jepa_tok.adapters import Adapter, base, fingerprint_of, fit_once, make_adapter, names
from jepa_tok.adapters.kmeans import nearest, sample_rows
from jepa_tok.adapters.mel_kmeans import MelKmeans
from jepa_tok.errors import AdapterError, ConfigError
from tests.test_pages import DOCS, run
from tests.tokenizers import one_line, paper_layout, speech


class Loudness(Adapter):
    """Loudness of 100 ms in `argument` steps."""

    name, sample_rate, frame_rate = "loudness", 8000, 10.0

    def __init__(self, argument):
        self.radices = (int(argument or 4),)
        self.fingerprint = fingerprint_of("loudness", list(self.radices))

    fingerprint = ""

    def encode(self, wave):
        """[T, 1]."""
        level = torch.nn.functional.pad(wave, (0, -len(wave) % 800)).reshape(-1, 800).abs().amax(1)
        return (level * self.radices[0]).clamp(0, self.radices[0] - 1)[:, None].numpy().astype(self.code_dtype)


class Bare(Adapter):
    """Its author forgot to say what it is called."""

    sample_rate, frame_rate, radices, fingerprint = 8000, 10.0, (4,), ""

    def __init__(self, argument):
        pass

    def encode(self, wave):
        """Never called."""


def register(monkeypatch, **values):
    """Entry points of a package that is not installed, beside those that are."""
    fake = [importlib.metadata.EntryPoint(name, value, base.GROUP) for name, value in values.items()]
    real = list(importlib.metadata.entry_points(group=base.GROUP))
    monkeypatch.setattr(base, "entry_points", lambda group: fake + real)


def test_one_from_scratch_is_found_by_its_entry_point(monkeypatch):
    monkeypatch.setitem(sys.modules, "someones_package", SimpleNamespace(Loudness=Loudness))
    register(monkeypatch, loudness="someones_package:Loudness")
    adapter = make_adapter("loudness:8")
    assert isinstance(adapter, Loudness) and "loudness" in names()
    assert (adapter.radices, adapter.slots, adapter.bits_per_second) == ((8,), 5, 30.0)
    codes = adapter.check(adapter.encode(torch.full((801,), 0.5)))
    assert codes.tolist() == [[4], [4]]
    np.testing.assert_allclose(adapter.values(codes), [[0.125], [0.125]])
    assert make_adapter("loudness").radices == (4,)
    assert make_adapter("loudness").fingerprint != adapter.fingerprint
    adapter.fit(iter(()))
    assert adapter.state() == {} and adapter.latents(torch.zeros(1)) is None
    with pytest.raises(AdapterError):
        adapter.load_state({"x": np.zeros(1)})
    for wrong in (codes.astype(np.int64), codes[:0], codes[:, 0], np.full((2, 1), 8, np.uint16)):
        with pytest.raises(AdapterError) as error:
            adapter.check(wrong)
        one_line(error, AdapterError)


BUILT_IN = {"random", "stage1", "melkm", "encodec", "dac", "mimi", "xcodec", "hubert", "wavlm"}


def test_the_page_holds():
    page = (DOCS / "adapters.md").read_text(encoding="utf-8")
    assert run(page.replace("```sh\n", "```text\n")) >= 3  # its one shell line is the probes'
    scratch = page.split("```python\n")[1].split("```")[0]
    assert len(scratch.splitlines()) < 40
    assert all(f"`{name}" in page for name in BUILT_IN)


def test_entry_points_are_installed_and_load():
    found = {e.name: e for e in importlib.metadata.entry_points(group=base.GROUP)}
    assert found.keys() >= BUILT_IN
    assert all(callable(found[name].load()) for name in BUILT_IN)


def test_what_cannot_be_had_is_told_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "someones_package", SimpleNamespace(Bare=Bare))
    register(
        monkeypatch,
        gone="no_such_package:make",
        text="builtins:str",
        bare="someones_package:Bare",
    )
    for spec, words in (
        ("nothing:at/all", ("nothing:at/all", "melkm", "random")),
        ("gone", ("gone", "no_such_package")),
        ("text", ("Adapter", "str")),
        ("bare", ("bare", "`name`")),
        ("random", ("random:small", "tiny")),
        ("melkm:eight", ("eight", "melkm:40,8,8")),
        ("melkm:7,8", ("7",)),
        ("melkm:40", ("codebooks",)),
        ("melkm:40,13", ("13", "12 bits")),
    ):
        with pytest.raises(AdapterError) as error:
            make_adapter(spec)
        assert all(word in one_line(error, AdapterError) for word in words), spec
    with pytest.raises(ConfigError) as error:
        make_adapter(tmp_path)
    assert "config.json" in one_line(error, ConfigError)
    with pytest.raises(AdapterError) as error:
        base.require("no_such_package.inside", "codec")
    assert "pip install 'jepa-tok[adapters]'" in one_line(error, AdapterError)


def test_two_packages_with_one_name_are_refused(monkeypatch):
    fake = [importlib.metadata.EntryPoint("same", value, base.GROUP) for value in ("a:make", "b:make", "a:make")]
    monkeypatch.setattr(base, "entry_points", lambda group: fake)
    with pytest.raises(AdapterError) as error:
        make_adapter("same")
    assert "a:make and b:make" in one_line(error, AdapterError)


# --- ours


def test_a_trained_tokenizer_gives_the_digits_of_its_tokens(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "tok")
    adapter = make_adapter(tmp_path / "tok")
    assert (adapter.sample_rate, adapter.frame_rate, adapter.slots) == (24_000, 2.5, 19)
    assert adapter.radices == (4,) * 128 and adapter.bits_per_second == 640
    assert adapter.fingerprint == tiny.hash
    wave = speech(24_000)
    codes = adapter.check(adapter.encode(wave))
    np.testing.assert_array_equal(codes, tiny.encode(wave).codes)
    np.testing.assert_array_equal(adapter.values(codes), tiny.fsq.dequantize(torch.from_numpy(codes.astype(int))))
    np.testing.assert_array_equal(adapter.latents(wave), tiny.latents(wave))
    np.testing.assert_array_equal(adapter.check(adapter.codes_of(adapter.latents(wave))), codes)
    adapter.fit(iter(()))  # nothing to learn, nothing read
    assert adapter.state() == {} and adapter.fingerprint == tiny.hash


@pytest.mark.parametrize("kind", ["random:tiny:7", "random:{}:7", "stage1:{}"])
def test_an_uncalibrated_quantiser_is_set_to_training_frames(kind, tmp_path):
    SpeechTokenizer.from_config("tiny", seed=7).save_pretrained(tmp_path / "tok")
    spec = kind.format(tmp_path / "tok")
    adapter = make_adapter(spec)
    with pytest.raises(AdapterError) as error:
        adapter.encode(speech(9600))
    assert "fit" in one_line(error, AdapterError)
    with pytest.raises(AdapterError, match="fit"):
        adapter.codes_of(np.zeros((1, 128), np.float32))
    waves = [speech(48_000, seed=i) for i in range(6)]
    before = adapter.fingerprint
    assert before != make_adapter(tmp_path / "tok").fingerprint  # the trained one must not take what this one learns
    fit_once(adapter, waves, tmp_path / "state.safetensors")
    assert adapter.fingerprint != before
    codes = np.concatenate([adapter.check(adapter.encode(w)) for w in waves])
    untouched = SpeechTokenizer.from_config("tiny", seed=7)
    before_codes = np.concatenate([untouched.encode(w).codes for w in waves])
    shares, shares_before = ((c[..., None] == np.arange(4)).mean(0) for c in (codes, before_codes))  # [D, 4]
    assert shares.min() > 0 and shares_before.min() == 0  # every digit has all its levels now
    assert shares.std() < 0.5 * shares_before.std()

    again = make_adapter(spec)
    fit_once(again, iter(()), tmp_path / "state.safetensors")
    np.testing.assert_array_equal(again.encode(waves[0]), adapter.encode(waves[0]))
    assert again.fingerprint == adapter.fingerprint
    with pytest.raises(AdapterError) as error:
        fit_once(MelKmeans(), iter(()), tmp_path / "state.safetensors")
    assert "delete it" in one_line(error, AdapterError)


def test_random_weights_go_by_their_seed():
    assert make_adapter("random:tiny").fingerprint == make_adapter("random:tiny:0").fingerprint
    assert make_adapter("random:tiny:1").fingerprint != make_adapter("random:tiny:0").fingerprint


def test_a_tanh_bound_has_nothing_to_learn(tmp_path):
    SpeechTokenizer.from_config(paper_layout()).save_pretrained(tmp_path / "thin")
    adapter = make_adapter(f"random:{tmp_path / 'thin'}")
    adapter.fit(iter(()))
    codes = adapter.check(adapter.encode(speech(2000)))
    assert codes.shape == (5, 12) and adapter.radices == (4, 4, 4, 2, 3, 8, 5, 4, 4, 4, 4, 4)


# --- melkm


@pytest.fixture(scope="module")
def melkm():
    pytest.importorskip("sklearn")
    adapter = MelKmeans(40, (5, 5))
    adapter.fit(speech(24_000, seed=i) for i in range(8))
    return adapter


def test_melkm_has_the_bits_of_our_tokens():
    adapter, ours = make_adapter("melkm"), make_adapter("random:tiny")
    assert adapter.bits_per_second == ours.bits_per_second == 640
    assert (adapter.frame_rate, adapter.radices, adapter.slots) == (40.0, (256, 256), 1)
    same = make_adapter("melkm:40,8,8")
    assert same.fingerprint == adapter.fingerprint and same.name == "melkm:40,8,8"


def test_melkm_keeps_more_with_each_codebook(melkm):
    wave = speech(12_001, seed=90)
    codes = melkm.check(melkm.encode(wave))
    assert codes.shape == (21, 2) and len(np.unique(codes[:, 0])) > 2
    mels = melkm.latents(wave)
    first = melkm.state()["centroids_0"][codes[:, 0]]
    errors = [np.square(mels - x).mean() for x in (mels.mean(0), first, melkm.values(codes))]
    assert errors[0] > errors[1] > errors[2]
    np.testing.assert_array_equal(
        codes[:, 0], np.square(mels[:, None] - melkm.state()["centroids_0"]).sum(-1).argmin(1)
    )
    assert len(melkm.check(melkm.encode(wave[:1]))) == 1


def test_melkm_is_the_same_for_the_same_audio_and_not_for_other(melkm):
    twins = [MelKmeans(40, (5, 5)) for _ in range(2)]
    assert twins[0].fingerprint == twins[1].fingerprint != melkm.fingerprint
    twins[0].fit(speech(24_000, seed=i) for i in range(8))
    assert twins[0].fingerprint == melkm.fingerprint
    twins[1].load_state(melkm.state())
    assert twins[1].fingerprint == melkm.fingerprint
    twins[1].fit(speech(24_000, seed=i) for i in range(1, 9))
    assert twins[1].fingerprint != melkm.fingerprint


def test_melkm_refuses_what_it_cannot_use(melkm):
    fresh = MelKmeans(40, (5, 5))
    state = melkm.state()
    short = {**state, "centroids_1": state["centroids_1"][:9]}
    broken = {**state, "centroids_1": np.full_like(state["centroids_1"], np.nan)}
    for call in (
        lambda: fresh.encode(speech(100)),
        lambda: fresh.fit([]),
        lambda: fresh.fit([speech(600 * 31)]),
        lambda: fresh.load_state({"centroids_0": state["centroids_0"]}),
        lambda: fresh.load_state(short),
        lambda: fresh.load_state(broken),
    ):
        with pytest.raises(AdapterError) as error:
            call()
        one_line(error, AdapterError)


def test_rows_are_drawn_from_twice_as_many_and_no_more_is_read():
    read = []

    def blocks():
        for i in range(100):
            read.append(i)
            yield np.full((10, 1), i)

    rows = sample_rows(blocks(), 50, seed=0)
    assert rows.shape == (50, 1) and read == list(range(10)) and len(np.unique(rows)) > 5
    np.testing.assert_array_equal(rows, sample_rows(blocks(), 50, seed=0))
    assert not np.array_equal(rows, sample_rows(blocks(), 50, seed=1))


def test_the_nearest_does_not_hang_on_its_company():
    rng = np.random.default_rng(0)
    rows, books = rng.standard_normal((50, 80), np.float32), rng.standard_normal((16, 80), np.float32)
    together = nearest(rows, books)
    np.testing.assert_array_equal(together, np.square(rows[:, None] - books).sum(-1).argmin(1))
    np.testing.assert_array_equal(together, np.concatenate([nearest(row[None], books) for row in rows]))


def test_fingerprints_see_names_shapes_types_and_bytes():
    x = np.arange(6, dtype=np.float32)
    parts = [{"a": x}, {"b": x}, {"a": x.reshape(2, 3)}, {"a": x.view(np.int32)}, {"a": x + 1}, ["a"], "a"]
    assert len({fingerprint_of(p) for p in parts}) == len(parts)
    assert fingerprint_of({"a": x, "b": 1}) == fingerprint_of({"b": 1, "a": x.copy()})
    assert fingerprint_of(torch.ones(2, dtype=torch.bfloat16)) != fingerprint_of(torch.ones(2, dtype=torch.float16))
