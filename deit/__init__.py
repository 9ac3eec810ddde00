"""The contract between the stages (preprocessing, checkpoint, model) and the `deit` command."""

__version__ = "0.1.0"
