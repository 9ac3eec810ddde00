"""The Python clients and `deit classify` against a real server, and against a busy one."""

import asyncio
import csv
import io
import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from serving.client import AsyncClient, Client, Refused, Unreachable
from tests.conftest import encoded, photograph
from tests.serving.conftest import LABELS, MODEL
from tests.short_commands import deit

JPEG = encoded(photograph(96, 64))


@pytest.fixture
def pictures(tmp_path):
    """Two good ones, a broken one, and a file that is not a picture."""
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(JPEG)
    (folder / "below" / "b.PNG").write_bytes(encoded(photograph(64, 96, seed=1), "PNG"))
    (folder / "torn.jpg").write_bytes(JPEG[:300])
    (folder / "notes.txt").write_text("not sent")
    return folder


def deit_classify(url, *arguments):
    return deit("classify", *map(str, arguments), environment={"DEIT_URL": url})


def test_the_client_gives_what_the_api_gives(server, pictures):
    body = server.post("/classify?heads=true&top_k=2", content=JPEG).json()
    with Client(server.url) as client:
        answer = client.classify(pictures / "a.jpg", heads=True, top_k=2, model=MODEL)
        assert answer == client.classify(JPEG, heads=True, top_k=2)
        assert client.models()[0]["name"] == MODEL
        assert client.classify(JPEG, min_probability=1.0).best is None
    assert [vars(each) for each in answer.predictions] == body["predictions"]
    assert [vars(each) for each in answer.heads.class_head] == body["heads"]["class"]
    assert answer.heads.agree == body["heads"]["agree"]
    assert (answer.model, answer.version) == (MODEL, "1")


def test_the_async_client_asks_many_at_once(server):
    contents = [encoded(photograph(60, 60, seed=seed)) for seed in range(16)]

    async def ask():
        async with AsyncClient(server.url, timeout_s=60) as client:
            assert (await client.models())[0]["name"] == MODEL
            return await asyncio.gather(*map(client.classify, contents))

    with Client(server.url, timeout_s=60) as client:
        one_by_one = [client.classify(content).best for content in contents]
    for together, alone in zip(asyncio.run(ask()), one_by_one, strict=True):
        assert together.best.label == alone.label
        assert together.best.probability == pytest.approx(alone.probability, abs=1e-5)  # batches add in another order


def test_a_refusal_has_the_name_of_its_problem(server, free_port):
    with Client(server.url) as client, pytest.raises(Refused, match="truncated or damaged") as refused:
        client.classify(JPEG[:300])
    assert (refused.value.status, refused.value.problem) == (422, "undecodable-image")
    with Client(f"http://127.0.0.1:{free_port}") as client, pytest.raises(Unreachable, match=str(free_port)):
        client.classify(JPEG)


CAT = {"model": "m", "version": "1", "predictions": [{"index": 0, "label": "cat", "probability": 1.0}]}


class Busy(BaseHTTPRequestHandler):
    """Refuses twice, then answers."""

    def do_POST(self):
        self.server.asked_s.append(time.monotonic())
        self.rfile.read(int(self.headers["Content-Length"]))
        if len(self.server.asked_s) > 2:
            self.answer(200, CAT)
        else:
            self.answer(429, {"type": "/problems/overloaded", "title": "Busy", "status": 429, "detail": "later"})

    def answer(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if status == 200 else "application/problem+json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def in_a_thread(handler):
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        server.asked_s = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def busy():
    with in_a_thread(Busy) as server:
        yield server


def test_a_busy_server_is_asked_again_when_it_says(busy):
    with Client(f"http://127.0.0.1:{busy.server_port}") as client:
        assert client.classify(JPEG).best.label == "cat"
    first, second, third = busy.asked_s
    assert second - first >= 1
    assert third - second >= 1


def test_patience_ends(busy):
    with Client(f"http://127.0.0.1:{busy.server_port}", patience_s=0.5) as client, pytest.raises(Refused, match="Busy"):
        client.classify(JPEG)
    assert len(busy.asked_s) == 1


@contextmanager
def breaking(answers):
    """A server that closes the connection instead of answering, but for the requests with the numbers `answers`."""
    asked = []

    class Breaking(Busy):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(len(asked))
            if asked[-1] in answers:
                self.answer(200, CAT)
            else:
                self.close_connection = True

    with in_a_thread(Breaking) as server:
        yield f"http://127.0.0.1:{server.server_port}", asked


def ask_in_turn(url, count):
    with Client(url) as client:
        return [client.classify(JPEG) for _ in range(count)]


def ask_in_a_loop(url, count):
    async def ask():
        async with AsyncClient(url) as client:
            return [await client.classify(JPEG) for _ in range(count)]

    return asyncio.run(ask())


@pytest.mark.parametrize("ask", [ask_in_turn, ask_in_a_loop])
def test_a_request_is_sent_once_more_when_its_connection_breaks(ask):
    with breaking(answers={0, 2}) as (url, asked):
        assert [each.best.label for each in ask(url, 2)] == ["cat", "cat"]
    assert asked == [0, 1, 2]
    with breaking(answers={}) as (url, asked), pytest.raises(Unreachable, match="disconnected"):
        ask(url, 1)
    assert asked == [0, 1]


def test_classify_takes_folders_and_says_which_file_is_broken(server, pictures):
    done = deit_classify(server.url, pictures)
    assert done.returncode == 1
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{pictures}/a.jpg: ")
    assert first.split(": ", 1)[1].rsplit(" ", 1)[0] in LABELS
    assert second.startswith(f"{pictures}/below/b.PNG: ")
    assert f"{pictures}: left out 1 that are not .jpg, .jpeg, .png, .webp, .avif: 1 .txt" in done.stderr
    assert f"{pictures}/torn.jpg: The image cannot be decoded: " in done.stderr
    assert done.stderr.splitlines()[-1] == "deit: 1 of 3 images not classified"


def test_classify_writes_json_and_csv(server, pictures):
    pattern = f"{pictures}/**/[ab].*"
    done = deit_classify(server.url, pattern, "--json", "--top-k=3", "--heads")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["file"] for line in lines] == [f"{pictures}/a.jpg", f"{pictures}/below/b.PNG"]
    assert all(len(line["predictions"]) == 3 and "agree" in line["heads"] for line in lines)
    done = deit_classify(server.url, pictures, "--csv", "--top-k=2")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(row["rank"], bool(row["problem"])) for row in rows] == [("1", False), ("2", False)] * 2 + [("", True)]
    assert float(rows[0]["probability"]) == pytest.approx(lines[0]["predictions"][0]["probability"], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nowhere.jpg"], 2, "not found"),
        (["--json", "--csv", __file__], 2, "choose one"),
        ([], 2, "Missing argument"),
        (["--model=huge", __file__], 1, "deit: No such model: "),
    ],
)
def test_what_is_wrong_is_said_by_status_and_message(server, arguments, status, message):
    done = deit_classify(server.url, *arguments)
    assert done.returncode == status
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_a_server_that_is_not_there_is_one_line(free_port):
    done = deit_classify(f"http://127.0.0.1:{free_port}", __file__)
    assert done.returncode == 1
    assert done.stderr.startswith("deit: http://127.0.0.1:")


def test_the_client_needs_nothing_of_the_server():
    program = (
        "import sys; import serving.client, serving.client.classify_command\n"
        "print(sorted({'fastapi', 'grpc', 'uvicorn', 'tritonclient', 'numpy', 'PIL'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
