"""What tests of the command line share."""

from __future__ import annotations


def assert_error(result, *parts):
    """The result of a `jepa_tok(...)` that failed with one line that has these parts, and printed nothing else."""
    status, out, err = result
    assert status == 2 and out == ""
    assert err.startswith("jepa-tok: error: ") and err.count("\n") == 1 and err.endswith("\n")
    for part in parts:
        assert str(part) in err
