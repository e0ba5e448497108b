"""Errors that a user can cause, each told in one line: what, which rule, what was given, how to mend it."""

from __future__ import annotations


class JepaTokError(Exception):
    """Base of all errors that a user can cause; command lines print it as one line and exit with status 2."""


class ConfigError(JepaTokError):
    """A configuration breaks a rule of the model."""


class AudioError(JepaTokError):
    """Audio is unreadable, empty, non-finite or of a wrong shape or rate."""


class TokenError(JepaTokError, ValueError):
    """Codes or tokens are out of range or of a wrong shape."""


class CorpusError(JepaTokError):
    """A manifest, corpus folder or token shard breaks its format."""


class AdapterError(JepaTokError):
    """A tokenizer's adapter is unknown, lacks a package or weights, or has not learned what it must before it encodes."""
