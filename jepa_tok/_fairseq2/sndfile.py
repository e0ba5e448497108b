"""libsndfile for fairseq2 without root: the soundfile wheel's own copy, loaded early or linked into the environment.

`python -c "from jepa_tok._fairseq2.sndfile import link_sndfile; print(link_sndfile())"` writes the link
`<environment>/lib/libsndfile.so.1`; then programs that import fairseq2 before jepa-tok (such as `python -m fairseq2.assets`)
work too.
"""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.util import find_spec
from pathlib import Path

SONAME = "libsndfile.1.dylib" if sys.platform == "darwin" else "libsndfile.so.1"


def bundled_sndfile() -> Path | None:
    """The library inside the installed soundfile wheel; None where soundfile relies on the system's."""
    spec = find_spec("_soundfile_data")
    if spec is None or not spec.submodule_search_locations:
        return None
    for folder in spec.submodule_search_locations:
        for path in sorted(Path(folder).glob("libsndfile*")):
            return path
    return None


def preload_sndfile() -> bool:
    """Loads libsndfile under its SONAME into the process; returns whether there is one.

    A library whose SONAME is loaded already satisfies later requests for it, wherever its file lies.
    """
    bundled = bundled_sndfile()
    for name in (SONAME, str(bundled) if bundled else None):
        if name is None:
            continue
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False


def link_sndfile(prefix: Path | None = None) -> Path | None:
    """Links the bundled library as `<prefix>/lib/libsndfile.so.1`, where fairseq2n looks last; returns the link.

    :param prefix: Root of the virtual environment; `sys.prefix` by default.
    """
    bundled = bundled_sndfile()
    if bundled is None:
        return None
    link = (prefix or Path(sys.prefix)) / "lib" / SONAME
    link.parent.mkdir(parents=True, exist_ok=True)
    fresh = link.with_name(f"{link.name}.tmp")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(bundled)
    os.replace(fresh, link)
    return link
