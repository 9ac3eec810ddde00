"""Servers that a measurement starts: waited for, reported when they fail, and gone afterwards with their workers."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmark.server import running
from deit.errors import BenchmarkError
from tests.serving.conftest import eventually, is_alive

# A server that leaves its worker behind, as some do.
LEAVES_A_WORKER = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
time.sleep(600)
"""


def test_a_server_is_ended_with_the_workers_that_it_would_leave_behind():
    def has_a_worker() -> bool:
        return bool(psutil.Process(server.pid).children())

    with running([sys.executable, "-c", LEAVES_A_WORKER], name="server") as server:
        server.wait_until(has_a_worker)
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
    eventually(lambda: not any(is_alive(each.pid) for each in family), 60)


def test_a_server_that_ends_says_why():
    command = [sys.executable, "-c", "import sys; sys.exit('the port is taken')"]
    with (
        pytest.raises(BenchmarkError, match=r"mosec ended with status 1:\nthe port is taken"),
        running(command, name="mosec") as server,
    ):
        server.wait_until(lambda: False)


def test_a_measurement_that_is_terminated_ends_its_server(tmp_path: Path):
    program = (
        "import sys, time\n"
        "from benchmark.command import benchmark\n"
        "from benchmark.server import running\n"
        "benchmark()\n"
        "with running([sys.executable, '-c', 'import time; time.sleep(600)'], name='server') as server:\n"
        "    print(server.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as measurement:
        assert measurement.stdout is not None
        pid = int(measurement.stdout.readline())
        measurement.terminate()
        assert measurement.wait(60) == 143
    assert not psutil.pid_exists(pid)
