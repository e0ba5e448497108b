"""Audio files that are cut short or joined, which libsndfile reads in part without a word, and mp3 files that it would.

S samples
"""

from __future__ import annotations

import os
import re
from typing import BinaryIO

import soundfile

from jepa_tok.errors import AudioError

OGG_PAGE = 65_307
"""Bytes of an Ogg page, at most."""

MP3_FRAMES = 2**12
"""Bytes behind the end that an mp3 tells, at most: frames of nothing but the encoder's padding."""

MP3_TAG = 128
"""Bytes of a tag at an mp3's end (ID3v1)."""


def is_short(found: int, promised: int, second: float) -> bool:
    """Whether more is missing than a careless header explains: 2 %, or what a second takes where that is less."""
    return promised - found > min(0.02 * promised, second)


def check_sizes(file: soundfile.SoundFile, name: str) -> None:
    """Raises AudioError where the header of a .wav, .aiff, .au or the like promises more than the file holds."""
    # libsndfile reads what there is, and only notes it in its log. Sizes at the ends of the range are those of programs that
    # wrote to a pipe and could not know.
    noted = re.findall(r"^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", file.extra_info, re.M)
    for promised, there in ((int(a), int(b)) for a, b in noted):
        second = max(64.0, there / max(1, file.frames) * file.samplerate)
        if is_short(there, promised, second) and promised - there > 64 and promised < 2**31 - 2**16:
            raise AudioError(f"'{name}' is cut short: {promised} bytes are promised, but {there} are there.")


def check_ogg(raw: BinaryIO, name: str) -> None:
    """Raises AudioError where an Ogg file ends within a page; other files pass. Leaves `raw` at its start."""
    # libsndfile takes the end of the file for that of the sound. The mark of a stream's last page is not asked for: recordings of
    # live streams and of programs that were ended lack it and are whole, and a cut between two pages is one in thousands.
    raw.seek(0)
    if raw.read(4) == b"OggS":
        size = raw.seek(0, os.SEEK_END)
        raw.seek(max(0, size - 2 * OGG_PAGE))  # what other programs put behind the last page is passed over
        tail = raw.read()
        page = tail[tail.rfind(b"OggS") :]
        segments = page[26] if len(page) > 26 else 0
        if len(page) < 27 + segments or len(page) < 27 + segments + sum(page[27 : 27 + segments]):
            raise AudioError(f"'{name}' is cut short: its last Ogg page is not whole.")
    raw.seek(0)


# mp3 ------------------------------------------------------------------------------------------------------------------


def mp3_tells_length(raw: BinaryIO) -> bool:
    """Whether an mp3's first frame holds the number of frames (Xing, Info or VBRI). Leaves `raw` at its start."""
    _skip_id3(raw, 0)
    found = re.search(b"Xing|Info|VBRI", raw.read(2**11)) is not None
    raw.seek(0)
    return found


class Endless:
    """An mp3 that does not tell its length, as libsndfile is to see it: so long that it reads to the last frame.

    It estimates the number of frames from the sizes of the file and of the first frame, and stops there: in the midst of the
    sound where the later frames are smaller.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._size = raw.seek(0, os.SEEK_END)
        self.seek(0)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        # The largest frame has 2,881 bytes, the smallest 24.
        return self._raw.seek(256 * self._size + offset) if whence == os.SEEK_END else self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def read(self, size: int) -> bytes:
        # A tag is looked for at the end, and there is to be none.
        return bytes(size) if self.tell() > self._size + MP3_TAG else self._raw.read(size)


def check_mp3_end(raw: BinaryIO, name: str) -> None:
    """Raises AudioError where an mp3, read up to the length that it tells, goes on: as several do that were joined to one file."""
    place = raw.tell()
    size = raw.seek(0, os.SEEK_END)
    _skip_id3(raw, place)
    head = raw.read(2)
    raw.seek(place)
    if size - place > MP3_FRAMES and head[:1] == b"\xff" and head[1:] >= b"\xe0":
        raise AudioError(
            f"'{name}' must end where it tells, but is an mp3 with {size - place} bytes of sound behind that; "
            "`ffmpeg -i IN -c copy OUT.mp3` corrects its length."
        )


def _skip_id3(raw: BinaryIO, place: int) -> None:
    """To what stands at `place`, behind a tag (ID3v2) that begins there."""
    raw.seek(place)
    head = raw.read(10)
    tag = 10 + sum(b << shift for b, shift in zip(head[6:], (21, 14, 7, 0))) if head[:3] == b"ID3" else 0
    raw.seek(place + tag)
