from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def patient_servers() -> Iterator[None]:
    """Servers that measurements start let wait whom they would refuse, because other tests have the cores too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEIT_MAX_WAIT_S", "60")
        patch.setenv("DEIT_REQUEST_TIMEOUT_S", "60")
        yield
