"""Pictures, small data sets and the shared data that every stage's tests use."""

import gc
import io
import json
import logging
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from PIL import Image, ImageFilter

from deit.log import OUR_LOGGERS
from deit.pictures import configure_pillow

REPOSITORY_ROOT = Path(__file__).parents[1]
SHARED_DATA = REPOSITORY_ROOT.parent / "shared" / "data"

# The same examples in every run, however slow the machine is; nothing is kept in a folder that processes share.
hypothesis.settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """CIFAR-10, 500 ImageNet photographs, DeiT-Ti's weights and hostile images, which are not ours to publish."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the development data in {SHARED_DATA}, which is not part of the repository")
    return SHARED_DATA


@pytest.fixture
def pillow_warnings_as_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """The filters and limits of the server, for this test: pytest restores its own after each."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    configure_pillow()


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB picture with the soft gradients, edges and grain of a photograph."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = random.normal(0, 6, (height, width, 3))
    pixels = np.clip(np.asarray(coarse.filter(ImageFilter.UnsharpMask(4))) + grain, 0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, image_format: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


@pytest.fixture(scope="session")
def colours_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set that a model learns in seconds: grainy 16-pixel squares in three colours, as parquet."""
    folder = tmp_path_factory.mktemp("colours")
    random = np.random.default_rng(0)
    for split, count in (("train", 192), ("test", 48)):
        images, labels = [], []
        for index in range(count):
            label = index % len(COLOURS)
            colour = np.array(list(COLOURS.values())[label])
            pixels = np.clip(colour + random.normal(0, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
            images.append(encoded(Image.fromarray(pixels), "PNG"))
            labels.append(label)
        write_parquet(folder / f"{split}.parquet", images, labels, tuple(COLOURS))
    return folder


def write_parquet(file: Path, images: list[bytes], labels: list[int], names: tuple[str, ...]) -> None:
    """A split of a data set, in the layout of Hugging Face."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"bytes": each, "path": f"{index}.png"} for index, each in enumerate(images)]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    pq.write_table(pa.table({"image": rows, "label": labels}, schema=schema), file)


COMPUTING = ("benchmark", "end_to_end", "export", "studies", "training")
"""Folders whose tests compute; those of the others mostly wait for servers and processes."""


LONG = (
    *("end_to_end/test_photographs.py", "deploy/test_gpu.py", "benchmark/test_gpu_check.py"),
    *("serving/embedded/test_faults.py", "end_to_end/test_precisions.py", "serving/test_lifecycle.py"),
    *("training/test_loop.py", "bulk/test_versions.py", "export/test_pipeline.py"),
    *("deploy/test_kubernetes.py", "end_to_end/test_shipped_model.py", "deit/test_installation.py"),
)
"""Files of half a minute and more. A file runs in one process: what begins late and takes long, the others wait for."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first; then files that compute and files that wait in turns, so that processes share the cores."""
    assert all((REPOSITORY_ROOT / "tests" / file).is_file() for file in LONG), "LONG names a file that is gone"
    files = sorted({item.location[0] for item in items}, reverse=True)
    groups = [[file for file in files if (file.split("/")[1] in COMPUTING) is computes] for computes in (True, False)]
    share = {file: place / len(group) for group in groups for place, file in enumerate(group)}
    share |= {f"tests/{file}": place - len(LONG) for place, file in enumerate(LONG)}
    items.sort(key=lambda item: share[item.location[0]])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """The same random numbers for a test, whichever tests ran before it in its process."""
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """Keep torch's DataLoader from handling SIGCHLD in the tests' process.

    Once OpenVINO has run in it, the frame of a handler no longer fits the signal stack, and the next child that ends,
    such as the `ldconfig` of an import, brings a segmentation fault.
    """
    if torch := sys.modules.get("torch"):
        torch.utils.data._utils.signal_handling._SIGCHLD_handler_set = True


def pytest_sessionfinish() -> None:
    """Free loaders in reference cycles: on exit, Python would wait for their workers for ever."""
    gc.collect()


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Undo the logging of a command that ran in the tests' process, which writes to a stream that pytest has closed."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
    root.setLevel(level)
    for name in OUR_LOGGERS:
        logging.getLogger(name).setLevel(logging.NOTSET)
    logging.captureWarnings(False)
