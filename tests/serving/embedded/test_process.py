"""The Triton process, with a script in the place of `tritonserver` that behaves badly on demand."""

import logging
import os
import signal
import sys

import pytest

from deit.errors import ServingError
from serving.embedded.process import TritonProcess
from tests.serving.conftest import eventually, is_alive


@pytest.fixture
def start(tmp_path):
    """start(source) -> a TritonProcess that runs this Python source."""
    started = []

    def start(source):
        script = tmp_path / "tritonserver.py"
        script.write_text(source)
        started.append(TritonProcess([sys.executable, "-u", str(script)], os.environ))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def test_its_errors_are_the_reason_when_it_ends(start):
    process = start(r"""
print('2026-01-01T00:00:00Z I 7 a.cc:1] "all is well"')
print('2026-01-01T00:00:00Z E 7 b.cc:2] "failed to load \'tiny\': no graph\\n\\nAt:\\n  x.py"')
print('a table')
raise SystemExit(3)
""")
    assert process.wait() == 3
    with pytest.raises(ServingError, match=r"^Triton ended with status 3: failed to load 'tiny': no graph$"):
        process.raise_if_ended()


def test_without_an_error_its_last_words_are_the_reason(start):
    process = start("print('error: creating server: no luck')")
    process.wait()
    with pytest.raises(ServingError, match="status 0: error: creating server: no luck"):
        process.raise_if_ended()


def said(caplog):
    """Level and text of each line of Triton; other threads of this process log too."""
    return [(each.levelname, each.getMessage()) for each in caplog.records if each.name == "triton"]


def test_what_it_says_is_logged_at_its_level(start, caplog):
    caplog.set_level(logging.DEBUG)
    process = start("""
print('2026-01-01T00:00:00Z I 7 a.cc:1] "loading"')
print('2026-01-01T00:00:00Z W 7 a.cc:1] "slow"')
print('E0101 00:00:00.000000 7 pb_stub.cc:3]  stub failed')
print('2026-01-01T00:00:00Z E 7 a.cc:1] "CudaDriverHelper has not been initialized."')
print('+---+')
""")
    process.wait()
    eventually(lambda: len(said(caplog)) == 5)
    assert said(caplog) == [
        ("DEBUG", "loading"),
        ("WARNING", "slow"),
        ("ERROR", "stub failed"),
        ("DEBUG", "CudaDriverHelper has not been initialized."),
        ("DEBUG", "+---+"),
    ]


def test_one_that_ignores_sigterm_is_killed_with_its_children(start, caplog):
    caplog.set_level(logging.DEBUG)
    process = start("""
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid)
time.sleep(600)
""")
    eventually(lambda: said(caplog))
    child = int(said(caplog)[0][1])
    process.stop(grace_s=0.1)
    assert process.wait() == -signal.SIGKILL
    eventually(lambda: not is_alive(child))
    process.raise_if_ended()  # it was asked to end


def test_it_is_in_a_process_group_of_its_own(start, caplog):
    caplog.set_level(logging.DEBUG)
    process = start("import time; print('up'); time.sleep(600)")
    eventually(lambda: said(caplog))
    assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
