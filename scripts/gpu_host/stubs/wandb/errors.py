"""Caught by fairseq2 around `wandb.init`."""


class UsageError(Exception):
    """Never raised."""
