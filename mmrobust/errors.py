"""The one exception type that reports a user's mistake."""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting, file or dataset that cannot work as given.

    The message is one sentence for the user: what is wrong and what to do. The
    command-line tools print it without a traceback and exit with status 2.
    """


class ModelError(ConfigError):
    """The model fails by itself, with or without an attack."""
