"""Audio in and out: resampling keeps sound and length, all formats give the same samples, and bad input gets one line."""

from __future__ import annotations

import contextlib
import errno
import io
import os

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_tok.audio import Resampler, load_audio, prepare_wave, resample, save_audio
from jepa_tok.errors import AudioError


def sine(frequency=1000.0, rate=24_000, seconds=0.5, amplitude=0.5):
    return (
        amplitude
        * torch.sin(2 * torch.pi * frequency / rate * torch.arange(int(rate * seconds), dtype=torch.float64)).float()
    )


# --- resampling


@pytest.mark.parametrize("rate", [4_000, 8_000, 16_000, 22_050, 44_100, 44_099, 48_000, 192_000])
def test_a_sine_keeps_frequency_amplitude_and_phase(rate):
    out = resample(sine(rate=rate), rate, 24_000)
    expected = sine(rate=24_000)
    assert out.shape == expected.shape and out.dtype == torch.float32
    middle = slice(2000, 10_000)  # away from the ends, where the sine starts from silence
    assert (out - expected)[middle].abs().max() < 1e-3
    peak = int(torch.fft.rfft(out[middle] * torch.hann_window(8000)).abs().argmax())
    assert peak * 24_000 / 8000 == pytest.approx(1000, abs=3)


@pytest.mark.parametrize("rate", [44_100, 48_000, 192_000])
def test_what_24_khz_cannot_hold_is_removed(rate):
    assert resample(sine(frequency=15_000, rate=rate), rate, 24_000)[1000:-1000].abs().max() < 1e-4


rates = st.one_of(
    st.sampled_from([4_000, 8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 192_000]),
    st.integers(4_000, 192_000),
)


@settings(deadline=None, max_examples=60)
@given(rates, rates, st.integers(1, 5000))
def test_length_is_rounded_up(orig, new, size):
    out = resample(torch.ones(size), orig, new)
    assert out.shape == (-(-size * new // orig),)
    assert out.abs().max() < 2


@settings(deadline=None, max_examples=20)
@given(rates, st.integers(1, 3000), st.integers(0, 2**31))
def test_resampling_is_the_same_each_time_and_for_each_row(rate, size, seed):
    x = torch.randn(2, size, generator=torch.Generator().manual_seed(seed))
    out = resample(x, rate, 24_000)
    assert torch.equal(out, resample(x, rate, 24_000))
    assert torch.equal(out[1], resample(x[1], rate, 24_000))


def test_the_same_rate_changes_nothing_and_copies():
    x = sine()
    y = resample(x, 24_000, 24_000)
    assert torch.equal(x, y) and x.data_ptr() != y.data_ptr()


def test_batch_of_nothing():
    assert resample(torch.zeros(0, 80), 8_000, 24_000).shape == (0, 240)


# --- arrays


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_integers_are_scaled(dtype):
    scale = -float(np.iinfo(dtype).min)
    wave = np.array([0, scale / 2, -scale / 2, -scale], dtype=dtype)
    assert prepare_wave(wave, 24_000).tolist() == [0, 0.5, -0.5, -1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float_dtypes(dtype):
    out = prepare_wave(torch.tensor([0.0, 0.5, -1.0], dtype=dtype), 24_000)
    assert out.tolist() == [0, 0.5, -1] and out.dtype == torch.float32


def test_shapes():
    x = sine()
    for same in (x, x[None], torch.stack([x, x]), x.numpy(), x.tolist(), x.requires_grad_()):
        out = prepare_wave(same, 24_000)
        assert torch.equal(out, x.detach()) and not out.requires_grad
    assert torch.allclose(prepare_wave(torch.stack([x, -x / 2, 0 * x]), 24_000), x / 6, atol=1e-7)
    assert prepare_wave([0.25], 8_000).shape == (3,)
    assert prepare_wave(np.zeros(10)[::-1], 24_000.0).shape == (10,)


def test_the_input_is_left_alone():
    x = sine()
    prepare_wave(x, 24_000).zero_()
    assert x.abs().max() > 0.4


@pytest.mark.parametrize(
    ("wave", "rate", "message"),
    [
        (torch.zeros(0), 24_000, "audio must have at least one sample, but has shape [0] instead."),
        (torch.zeros(2, 0), 24_000, "audio must have at least one sample, but has shape [2, 0] instead."),
        ([], 24_000, "audio must have at least one sample, but has shape [0] instead."),
        (torch.zeros(1, 1, 5), 24_000, "audio must have shape [S] or [C, S], but has [1, 1, 5] instead."),
        (torch.tensor(0.5), 24_000, "audio must have shape [S] or [C, S], but has [] instead."),
        (torch.zeros(500, 2), 24_000, "audio must have shape [C, S] with at most 64 channels, but has [500, 2] instead; transpose it."),
        (torch.zeros(65, 500), 24_000, "audio must have shape [C, S] with at most 64 channels, but has [65, 500] instead, and a batch is given as a list of clips."),
        ([0.0, float("nan")], 24_000, "audio must be finite, but sample 1 is nan instead."),
        (torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, float("inf")]]), 24_000, "audio must be finite, but sample 2 is inf instead."),
        ([1e300, 0.0], 24_000, "audio must be finite, but sample 0 is inf instead."),
        ([0.0, -3000.0], 24_000, "audio must lie in [-1, 1], but reaches 3000 instead; divide integer samples by their full scale (32768 for 16 bits)."),
        ([0, 1], 24_000, "audio must be floats in [-1, 1] or int8, int16 or int32, but has dtype int64 instead."),
        (torch.zeros(5, dtype=torch.uint8), 24_000, "audio must be floats in [-1, 1] or int8, int16 or int32, but has dtype uint8 instead."),
        (torch.zeros(5, dtype=torch.bool), 24_000, "audio must be floats in [-1, 1] or int8, int16 or int32, but has dtype bool instead."),
        (torch.zeros(5, dtype=torch.complex64), 24_000, "audio must be floats in [-1, 1] or int8, int16 or int32, but has dtype complex64 instead."),
        (torch.zeros(5).to_sparse(), 24_000, "audio must be a dense tensor with values, but is sparse or on the meta device instead."),
        (torch.zeros(5, device="meta"), 24_000, "audio must be a dense tensor with values, but is sparse or on the meta device instead."),
        ([[0.0], [0.0, 0.0]], 24_000, "audio must be a tensor, array or rectangular list of samples, but is list instead."),
        ("hello", 24_000, "audio must be a tensor, array or rectangular list of samples, but is str instead."),
        (None, 24_000, "audio must be a tensor, array or rectangular list of samples, but is NoneType instead."),
        ([0.0], 3_999, "audio must have a sample rate from 4000 to 192000 Hz, but it is 3999 instead."),
        ([0.0], 192_001, "audio must have a sample rate from 4000 to 192000 Hz, but it is 192001 instead."),
        ([0.0], 0, "audio must have a sample rate from 4000 to 192000 Hz, but it is 0 instead."),
        ([0.0], 16_000.5, "audio must have a sample rate that is a whole number of Hz, but it is 16000.5 instead."),
        ([0.0], None, "audio must have a sample rate that is a whole number of Hz, but it is None instead."),
        ([0.0], "24000", "audio must have a sample rate that is a whole number of Hz, but it is '24000' instead."),
        ([0.0], float("nan"), "audio must have a sample rate that is a whole number of Hz, but it is nan instead."),
        ([0.0], float("inf"), "audio must have a sample rate that is a whole number of Hz, but it is inf instead."),
    ],
)  # fmt: skip
def test_refused_arrays(wave, rate, message):
    with pytest.raises(AudioError) as caught:
        prepare_wave(wave, rate)
    assert str(caught.value) == message


def test_the_name_of_the_clip_stands_in_front():
    with pytest.raises(AudioError, match=r"^clip 7 must have at least one sample"):
        prepare_wave([], 24_000, name="clip 7")


# --- files


@pytest.mark.parametrize(
    ("suffix", "subtype", "tolerance"),
    [("wav", "PCM_U8", 1e-2), ("wav", "PCM_16", 1e-4), ("wav", "PCM_24", 1e-6), ("wav", "PCM_32", 1e-6), ("wav", "FLOAT", 0), ("wav", "DOUBLE", 0), ("flac", "PCM_16", 1e-4), ("aiff", "PCM_16", 1e-4), ("ogg", "VORBIS", 0.1)],
)  # fmt: skip
def test_containers_and_sample_formats(tmp_path, suffix, subtype, tolerance):
    path = tmp_path / f"a.{suffix}"
    x = sine()
    soundfile.write(path, x.numpy(), 24_000, subtype=subtype)
    out = load_audio(path)
    assert out.shape == x.shape and out.dtype == torch.float32
    assert (out - x)[100:-100].abs().max() <= tolerance


def test_channels_are_averaged_and_the_rate_is_changed(tmp_path):
    path = tmp_path / "a.wav"
    left = sine(rate=16_000)
    soundfile.write(path, torch.stack([left, -left / 2], 1).numpy(), 16_000, subtype="FLOAT")
    out = load_audio(str(path))
    assert torch.allclose(out, resample(left / 4, 16_000, 24_000), atol=1e-6)
    assert load_audio(path, 16_000).shape == left.shape


def test_one_sample(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([0.5]), 24_000)
    assert load_audio(tmp_path / "a.wav").tolist() == [0.5]


def test_a_part(tmp_path):
    path = tmp_path / "a.wav"
    x = torch.linspace(-0.5, 0.5, 24_000)
    soundfile.write(path, x.numpy(), 24_000, subtype="FLOAT")
    assert torch.equal(load_audio(path, start=0.25, end=0.5), x[6000:12_000])
    assert torch.equal(load_audio(path, start=0.75), x[18_000:])
    assert torch.equal(load_audio(path, start=0.5, end=1.01), x[12_000:])
    for start, end in ((1.0, 2.0), (-0.1, 0.5), (0.5, 0.5), (float("nan"), 1.0)):
        with pytest.raises(AudioError, match=r"must hold the part .* but is 1\.000 s long"):
            load_audio(path, start=start, end=end)


def test_open_files(tmp_path):
    buffer = io.BytesIO()
    soundfile.write(buffer, sine().numpy(), 24_000, format="FLAC")
    buffer.seek(0)
    assert load_audio(buffer).shape == (12_000,)
    with pytest.raises(AudioError, match="must be audio that libsndfile reads"):
        load_audio(io.BytesIO(b"hello"))


def refused(path):
    with pytest.raises(AudioError) as caught:
        load_audio(path)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    assert message.startswith(f"'{path}' ")
    return message.removeprefix(f"'{path}' ")


def test_refused_files(tmp_path):
    assert refused(tmp_path / "none.wav") == "must be an audio file, but does not exist."
    assert refused(tmp_path) == "must be an audio file, but is a folder instead."
    (tmp_path / "empty.wav").touch()
    assert refused(tmp_path / "empty.wav") == "must be an audio file, but is empty instead."
    for name in ("text.wav", "text.flac", "text.raw", "text.mp3", "text"):
        (tmp_path / name).write_text("not audio at all\n" * 100)
        assert refused(tmp_path / name).startswith("must be audio that libsndfile reads, but is not: ")
    soundfile.write(tmp_path / "zero.wav", np.zeros(0), 24_000)
    assert refused(tmp_path / "zero.wav") == "must have at least one sample, but has none."
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan]), 24_000, subtype="FLOAT")
    assert refused(tmp_path / "nan.wav") == "must be finite, but sample 1 is nan instead."
    soundfile.write(tmp_path / "slow.wav", np.zeros(10), 3_000)
    assert refused(tmp_path / "slow.wav") == "must have a sample rate from 4000 to 192000 Hz, but it is 3000 instead."
    with pytest.raises(AudioError, match="`path` must be a path"):
        load_audio(3)


def test_faults_that_are_not_the_file_s_are_told_as_such(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 16_000)

    def no_memory(*_):
        raise RuntimeError("not enough memory")

    def no_descriptors(*_):
        raise OSError(errno.EMFILE, "Too many open files", "a.wav")

    with monkeypatch.context() as patch:
        patch.setattr(Resampler, "push", no_memory)
        with pytest.raises(RuntimeError, match="not enough memory"):
            load_audio(tmp_path / "a.wav")
    monkeypatch.setattr("builtins.open", no_descriptors)
    with pytest.raises(OSError, match="Too many open files"):
        load_audio(tmp_path / "a.wav")


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_no_permission(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(10), 24_000)
    path.chmod(0)
    assert refused(path) == "must be an audio file, but cannot be opened: Permission denied."


# --- writing


@pytest.mark.parametrize("suffix", ["wav", "flac", "WAV"])
def test_16_bit_audio_survives(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    x = torch.arange(-(2**15), 2**15, 7).float() / 2**15
    save_audio(path, x)
    assert torch.equal(load_audio(path), x)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert soundfile.info(path).subtype == "PCM_16"


def test_clipping_channels_and_rate(tmp_path):
    path = tmp_path / "a.wav"
    save_audio(path, np.array([[1.5, 0.5], [-2.0, 0.5]]), 8_000)
    assert soundfile.info(path).samplerate == 8_000
    assert soundfile.read(path)[0].tolist() == [[1 - 2**-15, -1.0], [0.5, 0.5]]


def test_refused_writes(tmp_path):
    for path, wave, part in (
        (tmp_path / "a.mp3", sine(), "must end in .wav or .flac, but ends in '.mp3' instead."),
        (tmp_path / "a.wav", [float("nan")], "must be finite, but is not."),
        (tmp_path / "a.wav", [], "must have shape [S] or [C, S], but has [0] instead."),
        (tmp_path / "no" / "a.wav", sine(), "must exist before 'a.wav' is written there, but does not."),
    ):
        with pytest.raises(AudioError) as caught:
            save_audio(path, wave)
        assert str(caught.value).endswith(part)
    with pytest.raises(AudioError, match="must keep its number of channels, but has 1, then 2"):
        save_audio(tmp_path / "a.wav", iter([torch.zeros(5), torch.zeros(2, 5)]))
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(AudioError, match="could not be written"):
        save_audio(tmp_path / "folder.wav", sine())
    assert [p.name for p in tmp_path.iterdir()] == ["folder.wav"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("size", [10, 1_000_000])  # written when the file closes, and before
def test_a_full_disk_is_called_so(tmp_path, monkeypatch, suffix, size):
    monkeypatch.setattr("jepa_tok.audio.atomic_path", lambda _: contextlib.nullcontext("/dev/full"))
    with pytest.raises(AudioError) as caught:
        save_audio(tmp_path / f"a.{suffix}", torch.rand(size))
    assert str(caught.value) == f"'{tmp_path}/a.{suffix}' could not be written: No space left on device."


@pytest.mark.skipif(os.name == "nt", reason="no limits")
def test_a_disk_that_fills_leaves_nothing(tmp_path):
    import resource

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.raises(AudioError, match=r"a\.wav' could not be written: File too large\.$"):
            save_audio(tmp_path / "a.wav", iter([torch.rand(24_000)] * 5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_arrays_of_either_byte_order_are_read(dtype):
    wave = (1000 * np.sin(np.arange(2400))).astype("<" + dtype) / (1 if dtype == "i2" else 32_768)
    wave = wave.astype("<" + dtype)
    little, big = (prepare_wave(wave.astype(order + dtype), 24_000) for order in "<>")
    assert torch.equal(little, big)
