"""Errors a user can act on. Each message says what is wrong, where, why, and what to type."""

import errno
import re
import shlex
from pathlib import Path

# errors of the operating system that a user mends: a full disk, a quota, no permission, no folder
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)

PLAIN = re.compile(r"[\w/.+@-]([\w/.+@: -]*[\w/.+@-])?", re.ASCII)  # Hydra takes it as it stands


class IadError(Exception):
    """Base of every error printed to a user as one message, without a traceback."""


class ConfigError(IadError, ValueError):
    """A setting is unknown, out of range, or contradicts another one."""


class DataError(IadError, ValueError):
    """A data set is missing, unreadable, or disagrees with itself."""


class WeightsError(IadError, FileNotFoundError):
    """The weights a run needs are not there, or are not what they are said to be."""


class MismatchError(IadError, RuntimeError):
    """Two parts that must agree (sampler and trainer, prompt and images, ...) do not."""


class TrainingError(IadError, RuntimeError):
    """Training reached a state it must not continue from, such as a NaN loss."""


class Terminated(BaseException):
    """SIGTERM arrived, and what can be saved is. Not an Exception: only the worker catches it."""


def setting(key: str, value: str | Path | list[str]) -> str:
    """`key=value` as a shell and Hydra both read it, whatever a path or a list of them holds."""
    if isinstance(value, list):
        return shlex.quote(f"{key}=[{','.join(map(quoted, value))}]")
    return shlex.quote(f"{key}={quoted(str(value))}")


def quoted(value: str) -> str:
    """In Hydra's quotes where its grammar would read something else: backslashes count before a
    quote alone, also before the closing one."""
    if PLAIN.fullmatch(value):
        return value
    escaped = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + ('\\"' if m[2] else ""), value)
    return f'"{escaped}"'
