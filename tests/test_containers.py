"""Files that are cut short or joined are refused, never read in part; an mp3 that does not tell its length is read whole."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
import torch

from jepa_tok.audio import AudioFile, load_audio
from jepa_tok.errors import AudioError

RATE = 16_000
NOISE = np.random.default_rng(0).normal(size=100_000) * 0.1


def written(wave=NOISE, rate=RATE, **options):
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, 1, **options) as sound:
        sound.write(wave)
    return file.getvalue()


def refusal(content, **part):
    with pytest.raises(AudioError) as caught:
        load_audio(io.BytesIO(content), RATE, **part)
    assert str(caught.value).startswith("'audio' ") and "\n" not in str(caught.value)
    return str(caught.value).removeprefix("'audio' ")


# Cut ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["FLAC", "MP3", "WAV", "AIFF", "AU", "W64", "RF64", "CAF", "OGG"])
def test_cut_files_are_refused(form, tmp_path):
    content = written(format=form)
    assert len(load_audio(io.BytesIO(content), RATE)) == len(NOISE)
    (tmp_path / "a").write_bytes(content[: len(content) // 2])
    refusal(content[: len(content) // 2])
    with pytest.raises(AudioError, match=f"^'{tmp_path / 'a'}' "):
        load_audio(tmp_path / "a", RATE)


@pytest.mark.parametrize("form", ["FLAC", "MP3", "WAV", "AIFF", "AU", "W64", "RF64"])
def test_more_than_a_second_is_missed_however_long_the_file(form):
    content = written(np.tile(NOISE, 5)[: 60 * 8000], 8000, format=form)
    assert len(load_audio(io.BytesIO(content), 8000)) == 60 * 8000
    for seconds in (30, 1.1):
        refusal(content[: round(len(content) * (60 - seconds) / 60)])


def test_flac_is_refused_at_any_cut():
    content = written(format="FLAC")
    frames = [i for i in range(len(content) - 1) if content[i : i + 2] == b"\xff\xf8"]
    for size in (frames[-1], frames[-2], frames[len(frames) // 2], len(content) - 1):
        refusal(content[:size])


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_is_refused_where_its_last_page_is_not_whole(subtype):
    content = written(format="OGG", subtype=subtype)
    assert len(load_audio(io.BytesIO(content + b"tag of another program"), RATE)) == len(NOISE)
    for size in (len(content) - 1, len(content) // 2, 300):
        assert refusal(content[:size]) == "is cut short: its last Ogg page is not whole."


def test_ogg_of_a_stream_that_was_ended_is_whole():
    content = written(format="OGG", subtype="VORBIS")
    assert content[content.rfind(b"OggS") + 5] & 4  # the mark of the last page
    assert len(load_audio(io.BytesIO(content[: content.rfind(b"OggS")]), RATE)) > 0.5 * len(NOISE)


# mp3 ------------------------------------------------------------------------------------------------------------------


def without_length(wave):
    """An mp3 of varying bit rate whose first frame, which tells the number of frames, is gone."""
    content = written(wave, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
    return content[content.index(content[:2], 4) :]


@pytest.mark.parametrize("tag", [b"", b"TAG" + bytes(125)])
@pytest.mark.parametrize("is_path", [True, False])
def test_an_mp3_without_its_length_is_read_whole(tag, is_path, tmp_path):
    quiet_then_loud = np.random.default_rng(0).normal(size=RATE * 40) * np.repeat([1e-4, 0.2], RATE * 20)
    for wave, estimate in ((quiet_then_loud, 1.5), (quiet_then_loud[::-1], 0.7)):  # estimated too long, too short
        path = tmp_path / "a.mp3"
        path.write_bytes(without_length(wave) + tag)
        assert (soundfile.info(path).frames > estimate * len(wave)) == (estimate > 1)

        def load(*part):
            start, end = part or (None, None)
            return load_audio(path if is_path else io.BytesIO(path.read_bytes()), RATE, start=start, end=end)  # noqa: B023

        whole = load()
        assert 0 <= len(whole) - len(wave) < 3000  # the encoder's delay and padding are told with the length
        for start in (1, 25, 35):
            part, expected = load(start, start + 2), whole[start * RATE : (start + 2) * RATE]
            assert len(part) == len(expected)
            assert torch.allclose(part[2000:], expected[2000:], atol=1e-3)  # the decoder has to find its way in first
        assert len(load(39, 100)) == len(whole) - 39 * RATE
        with pytest.raises(AudioError, match=r"must hold the part 50 to 51 s, but ends before it\.$"):
            load(50, 51)


def test_joined_mp3s_are_refused_not_read_in_part():
    content = written(format="MP3")
    tag = b"ID3\4\0\0\0\0\7\0" + bytes(7 * 128)
    for second in (content, tag + content):
        assert "bytes of sound behind that" in refusal(content + second)
    assert len(load_audio(io.BytesIO(content + content), RATE, start=1, end=2)) == RATE
    for behind in (b"TAG" + bytes(125), b"APETAGEX" + bytes(10_000), tag):
        assert len(load_audio(io.BytesIO(tag + content + behind), RATE)) == len(NOISE)


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_an_open_file_is_read_from_its_start_each_time(form):
    file = io.BytesIO(written(format=form))
    file.seek(8)
    clip = AudioFile(file, RATE)
    assert [sum(map(len, clip)) for _ in range(2)] == [len(NOISE)] * 2
