"""Errors that the user can fix.

The command prints the message as one line and exits with status 1. A message names the thing, what was found and the
next step. Anything else that reaches the top is a bug and keeps its traceback.
"""

from typing import Literal

Refusal = Literal["unsupported-type", "undecodable-image", "image-too-large", "image-too-complex"]
"""Why an image file is refused; the gateway has a problem of the same name for each."""


class DeitError(Exception):
    """An error that the user can fix; the message is written for them."""


class DataError(DeitError):
    """A data set that is missing, has an unknown layout, or does not contain a usable image."""


class PictureError(DeitError):
    """An image file of another format, damaged, too large or too costly to decode.

    The caller adds the file's name if it knows it.
    """

    def __init__(self, refusal: Refusal, finding: str) -> None:
        super().__init__(finding)
        self.refusal = refusal


class CheckpointError(DeitError):
    """A checkpoint that is missing, damaged, unsafe to open, or of another architecture."""


class TrainingError(DeitError):
    """A training run that cannot start with these settings, or whose loss is no longer finite."""


class RepositoryError(DeitError):
    """A model that failed its parity check, or a model repository that cannot be written or read."""


class ServingError(DeitError):
    """Triton or the gateway cannot start, because of a port, a library, the platform or a model."""


class BenchmarkError(DeitError):
    """A measurement that could not be made."""
