"""Pictures that are kept with their answers: whole, no more than allowed, and on nobody's time."""

import asyncio
import json
import os
import time

import httpx
import numpy as np
import pytest

from deit.candidate import is_in_share
from deit.errors import ServingError
from serving.gateway.admission import Admission
from serving.gateway.capture import ABANDONED_S, MOST_WAITING, TALLY_FILE, Capture, Captured
from serving.gateway.metrics import Metrics
from serving.gateway.uploads import Upload
from serving.settings.capture import CaptureSettings
from serving.settings.limits import Limits
from tests.conftest import encoded, photograph
from tests.serving.conftest import eventually, running

JPEG = encoded(photograph(64, 48))


class Folder:
    """A folder with one writer, or several as when gateways share it."""

    def __init__(self, folder, *, writers=1, **limits):
        self.folder = folder
        self._settings = CaptureSettings(**limits)
        self._writers = writers
        self.metrics = Metrics({}, Admission(Limits()))

    def keep(self, count):
        """What is in the folder after so many images came, each at once to every writer; and the outcomes."""

        async def run():
            captures = [Capture(self.folder, self._settings, self.metrics) for _ in range(self._writers)]
            for index in range(count):
                captured = Captured(
                    Upload("name.jpg", JPEG), f"id-{index}", "tiny", "1", ("cat", "dog"), np.array([0.25, 0.75])
                )
                for capture in captures:
                    capture.keep(captured)
            for capture in captures:
                await capture.written()

        asyncio.run(run())
        return {
            sample.labels["outcome"]: sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "deit_captured_images_total"
        }

    def kept(self):
        return sorted(path for path in self.folder.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("writers", [1, 3])
@pytest.mark.parametrize("limits", [{"max_images": 4}, {"max_bytes": 4 * len(JPEG) + 10}])
def test_a_folder_holds_no_more_than_it_may_whoever_writes_and_takes_more_when_there_is_room(tmp_path, writers, limits):
    folder = Folder(tmp_path / "kept", writers=writers, **limits)
    assert folder.keep(6) == {"written": 4, "full": 6 * writers - 4}
    assert len(folder.kept()) == 4
    assert folder.keep(1)["written"] == 4, "also by the next server"
    for path in folder.kept()[:2]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    assert folder.keep(6)["written"] == 6


def test_what_comes_while_writing_is_behind_is_dropped(tmp_path):
    assert Folder(tmp_path).keep(MOST_WAITING + 5) == {"written": MOST_WAITING, "dropped": 5}


def test_what_a_killed_writer_left_is_removed_and_what_another_one_writes_is_not(tmp_path):
    old, new = tmp_path / ".a.123", tmp_path / ".b.456"
    for path in (old, new):
        path.mkdir()
        (path / "picture.jpg").write_bytes(JPEG)
    long_ago = time.time() - ABANDONED_S - 1
    os.utime(old, (long_ago, long_ago))
    Folder(tmp_path).keep(1)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_tally_that_a_full_disk_cut_off_is_counted_again(tmp_path):
    folder = Folder(tmp_path, max_images=3)
    assert folder.keep(2) == {"written": 2}
    for damaged in ("", "2"):
        (tmp_path / TALLY_FILE).write_text(damaged)
        folder.keep(2)
        assert len(folder.kept()) == 3


def test_no_other_user_may_read_what_is_kept_also_in_a_folder_that_was_there(tmp_path):
    tmp_path.chmod(0o755)
    folder = Folder(tmp_path)
    folder.keep(1)
    assert all(path.stat().st_mode & 0o077 == 0 for kept in folder.kept() for path in (kept, *kept.iterdir()))


def test_a_folder_that_cannot_be_written_ends_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ServingError, match=r"--capture \(DEIT_CAPTURE\): .* cannot be written"):
        Folder(tmp_path / "file" / "below").keep(1)


def test_a_full_disk_is_counted_and_reaches_no_caller(tmp_path, monkeypatch):
    folder = Folder(tmp_path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("serving.gateway.capture.new_folder", full)
    assert folder.keep(3) == {"failed": 3}
    assert folder.kept() == []


def test_a_server_keeps_the_share_that_it_is_told_as_it_came_and_nothing_of_who_asked(model_repository, tmp_path):
    ids = [f"caller-{index}" for index in range(12)]
    wanted = [each for each in ids if is_in_share(each, 50, of="capture")]
    assert 0 < len(wanted) < len(ids)
    pictures = {each: encoded(photograph(64, 48, seed=index), "PNG") for index, each in enumerate(ids)}
    arguments = ("--model-repository", model_repository, f"--capture={tmp_path / 'kept'}", "--capture-percent=50")
    answers = {}
    with running(*arguments, "--max-wait-s=60") as server, httpx.Client(timeout=60) as client:
        server.wait_until_ready()
        for each in ids:
            files = {"image": ("secret-name.png", pictures[each])}
            answer = client.post(f"{server.url}/classify", files=files, headers={"X-Request-ID": each})
            answers[each] = answer.json()
        client.post(f"{server.url}/classify", content=b"torn", headers={"X-Request-ID": wanted[0]})
        eventually(lambda: f'written"}} {len(wanted)}.0' in client.get(f"{server.url}/metrics").text)
    folders = sorted((tmp_path / "kept").glob("2*"))
    assert (tmp_path / "kept").stat().st_mode & 0o077 == 0
    found = {}
    for folder in folders:
        assert {file.name for file in folder.iterdir()} == {"picture.png", "answer.json"}
        answer = json.loads((folder / "answer.json").read_text())
        assert answer.keys() == {"request_id", "model", "version", "predictions"}
        found[answer["request_id"]] = answer
        assert (folder / "picture.png").read_bytes() == pictures[answer["request_id"]]
    assert sorted(found) == sorted(wanted)
    for each in wanted:
        assert found[each]["predictions"] == answers[each]["predictions"]
        assert (found[each]["model"], found[each]["version"]) == ("tiny", answers[each]["version"])
