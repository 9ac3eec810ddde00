"""4,994 odd, broken and hostile files of other projects: typed errors only, and the outcome recorded for each."""

import contextlib
import json
import re
import shutil
import subprocess
import tarfile

import pytest

from deit.errors import PictureError
from deit.pictures import PictureLimits, read_picture

# Where we differ from the recorded outcome on purpose.
REVIEWED = {
    # google/wuffs test/data/artificial-png/exif.png: ImageOps.exif_transpose raises on its EXIF, the picture decodes
    "cee7e15200d0959599acf82673b48033880a73db8231b385befbfe16cfadc21b": "accept",
}


@pytest.mark.usefixtures("pillow_warnings_as_served")
def test_every_file_is_decoded_or_refused_as_recorded(shared_data):
    outcomes = {name: outcome(content) for name, content in hostile_files(shared_data)}
    assert len(outcomes) > 4000
    assert outcomes == expected_outcomes(shared_data)


def expected_outcomes(shared_data):
    """accept or reject, by name."""
    records = [json.loads(line) for line in (shared_data / "hostile" / "images.jsonl").read_text().splitlines()]
    # The outcomes come from a Pillow without AVIF.
    avif = {each["sha256"]: "accept" for each in records if re.search(r"^python-pillow/.*\.avif$", each["source"])}
    return {record["sha256"]: record["outcome"] for record in records} | avif | REVIEWED


def outcome(content):
    try:
        image = read_picture(content, PictureLimits(max_pixels=25_000_000)).image
    except PictureError:
        return "reject"
    assert image.mode == "RGB"
    return "accept"


def hostile_files(shared_data):
    """Name and content of every file, from a .tar.zst, which Python 3.12 does not open by itself."""
    archive = shared_data / "hostile" / "images.tar.zst"
    if shutil.which("zstd") is None:
        pytest.skip("needs the command zstd to unpack the files")
    with contextlib.ExitStack() as stack:
        zstd = stack.enter_context(subprocess.Popen(["zstd", "-dc", str(archive)], stdout=subprocess.PIPE))
        tar = stack.enter_context(tarfile.open(fileobj=zstd.stdout, mode="r|"))
        for member in filter(tarfile.TarInfo.isfile, tar):
            yield member.name.rpartition("/")[2], tar.extractfile(member).read()
