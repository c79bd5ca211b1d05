"""Errors of the engine. Every message is one sentence: the rule, the value found, the remedy."""


class EngineError(Exception):
    """Base of every error that the engine raises on purpose."""


class CheckpointError(EngineError):
    """A file is broken, of the wrong kind, incomplete, or does not hold what was asked for."""


class UnsupportedConfig(CheckpointError):
    """A configuration value lies outside what this engine implements."""


class MismatchError(EngineError):
    """Two files, or a file and an input, do not belong together."""


class SizeError(EngineError, ValueError):
    """A size, length or index lies off the grid that the models require."""


class NonFiniteError(EngineError):
    """A computation produced NaN or infinity; the message names the step and the stream."""


class OutOfMemory(EngineError):
    """A phase does not fit, not even in its smallest form; what was made before it is kept."""
