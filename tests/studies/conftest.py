"""Studies train the same small models as the tests of training."""

from tests.training.conftest import one_thread

__all__ = ["one_thread"]
