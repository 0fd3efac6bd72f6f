"""Exceptions that a caller may want to catch, and the exit code each one means."""

from __future__ import annotations


class PureebmError(Exception):
    """Base of all errors of this package; its text is written for the user."""

    exit_code = 2


class InputError(PureebmError, ValueError):
    """A bad argument, file or data set: refused before anything was written."""


class ModelError(InputError):
    """Weights that cannot be loaded: wrong hash, names, shapes or card."""


class MismatchError(InputError):
    """A repeated job differs from the one that it would continue."""


class ItemError(PureebmError):
    """One image cannot be read, purified or written; the job goes on as `--on-error` says."""

    exit_code = 1


class DivergedError(PureebmError):
    """Training diverged again after every allowed rollback."""


class Interrupted(PureebmError):
    """The job stopped on Ctrl-C or SIGTERM and can be resumed by the same command."""

    exit_code = 130
