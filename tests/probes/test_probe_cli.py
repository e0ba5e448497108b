"""The probes' command line: each mistake in it is one line."""

from __future__ import annotations

import pytest

from probes.cli import main, parser


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


def test_numbers_belong_to_the_tokenizer_before() -> None:
    given = ["run", "--suite", "an4", "--out", "o", "--tokenizers", "small,melkm:40,8,8,exp/8,random"]
    assert parser().parse_args(given).tokenizers == ["small", "melkm:40,8,8", "exp/8", "random"]
