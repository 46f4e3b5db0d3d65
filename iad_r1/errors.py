"""Errors a user can act on. Each message says what is wrong, where, why, and what to type."""


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
