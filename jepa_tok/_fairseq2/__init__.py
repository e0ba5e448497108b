"""What fairseq2 is told about jepa-tok: families, data, hooks. Only this package and `jepa_tok.extension` import fairseq2.

Importing it makes libsndfile loadable first: fairseq2's native library asks for `libsndfile.so.1`, which a fresh machine
lacks; the soundfile wheel brings the same library under another name.
"""

from __future__ import annotations

from jepa_tok._fairseq2.sndfile import preload_sndfile

preload_sndfile()
