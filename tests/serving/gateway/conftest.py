"""A model that `deit export` made, for what an export alone knows."""

from tests.export.conftest import checkpoint, labelled

__all__ = ["checkpoint", "labelled"]
