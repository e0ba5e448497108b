"""The probes' command line: each mistake in it is one line."""

from __future__ import annotations

import pytest

from probes.cli import main


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["speaker"],
        ["emotion", "--tokens", "t", "--out", "o", "--folds", "0"],
        ["asr", "--tokens", "t", "--out", "o", "--random-tokens", "r", "--random-config", "tiny"],
    ],
)
def test_bad_command_lines(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and not out
    assert err.startswith("error: ") and err.endswith("--help)\n") and err.count("\n") == 1


def test_bad_device(tmp_path, capsys):
    assert main(["asr", "--tokens", "t", "--out", str(tmp_path / "o"), "--device", "abacus"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: `--device`") and "abacus" in err and err.count("\n") == 1
    assert not (tmp_path / "o").exists()
