from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def patient_servers() -> Iterator[None]:
    """Servers under measurement let requests wait instead of refusing them, because other tests use the cores too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEIT_MAX_WAIT_S", "60")
        patch.setenv("DEIT_REQUEST_TIMEOUT_S", "60")
        yield
