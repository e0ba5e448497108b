"""The rows that a command names."""

from __future__ import annotations

import pytest

from probes.data import ProbeError
from probes.entries import make_entries


def test_random_alone_is_untrained_with_the_config_of_the_first_of_ours() -> None:
    found = make_entries(["melkm", "random", "latent:tiny", "tiny"], [], "cpu")
    assert [e.name for e in found] == ["melkm", "random:tiny", "latent:tiny", "tiny", "logmel"]


@pytest.mark.parametrize("specs", [["random"], ["melkm", "random"], ["random:tiny", "random"]])
def test_random_alone_needs_one_of_ours(specs: list[str]) -> None:
    with pytest.raises(
        ProbeError, match=r"takes the config of the first of our tokenizers.* name a config, as in `random:small`"
    ):
        make_entries(specs, [], "cpu")
