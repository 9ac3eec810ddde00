"""One export, step by step: load, build the graph, prove it, publish it."""

import json
import logging
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import onnx
import onnxruntime
import timm
import torch

from deit import __version__
from deit.errors import RepositoryError
from deit.model import ONNX_FILE, PROVENANCE_FILE, Provenance
from deit.repository import publish
from export.config import ExportConfig
from export.configuration import Scheduling, model_config
from export.graph import export_graph
from export.joint import JointClassifier
from export.parity import LARGEST_DIFFERENCE, compare, load_images
from export.source import load_source

logger = logging.getLogger(__name__)


def export_model(config: ExportConfig) -> Path:
    """Publish the model that `config` names and return the folder of its new version.

    Raises:
        DeitError: it cannot be loaded, exported or published, or its answers differ from PyTorch's. Nothing is
        published.
    """
    source = load_source(config)
    name = config.name or source.architecture
    classifier = JointClassifier(source.model, source.preprocessing).eval()
    images = load_images(config.images, source.preprocessing, config.parity_images)

    with tempfile.TemporaryDirectory() as temporary:
        onnx_file = Path(temporary) / ONNX_FILE
        logger.info("exporting %s at %d px to ONNX", source.architecture, source.preprocessing.image_size)
        export_graph(classifier, source.preprocessing.image_size, onnx_file)

        parity = compare(classifier, onnx_file, images)
        logger.info(
            "on %d images of %s: largest difference of a probability from PyTorch's %.1e, same first answer on %d",
            parity.images,
            config.images,
            parity.max_difference,
            parity.same_top1,
        )
        if not parity.holds:
            raise RepositoryError(
                f"{name} is not published: the graph's probabilities differ from PyTorch's by up to "
                f"{parity.max_difference:.1e} (allowed {LARGEST_DIFFERENCE:.0e}), and "
                f"{parity.images - parity.same_top1} of {parity.images} images change their first answer. "
                "This is a bug in the export; please report it."
            )

        provenance = Provenance(
            architecture=source.architecture,
            checkpoint_sha256=source.weights_sha256,
            precision="fp32",
            readout="joint-probability" if len(classifier.output_names) > 1 else "class",
            teacher=source.teacher,
            parity_images=parity.images,
            parity_max_difference=parity.max_difference,
            metrics=source.metrics,
            versions={
                "deit-server": __version__,
                "torch": torch.__version__,
                "timm": timm.__version__,
                "onnx": onnx.__version__,
                "onnxruntime": onnxruntime.__version__,
            },
        )
        settings = asdict(config)
        version = publish(
            config.repository,
            name,
            config=model_config(
                backend="onnxruntime",
                file=ONNX_FILE,
                backend_parameters={"intra_op_thread_count": str(config.threads)},
                outputs=classifier.output_names,
                num_classes=len(source.label_names),
                preprocessing=source.preprocessing,
                provenance=provenance,
                verification=asdict(parity),
                scheduling=Scheduling(
                    **{field: settings[field] for field in settings if field in Scheduling.__dataclass_fields__}
                ),
            ),
            label_names=source.label_names,
            fill=lambda folder: _fill(folder, onnx_file, provenance),
        )
    folder = config.repository / name / str(version)
    logger.info("published %s (%.1f MB)", folder, (folder / ONNX_FILE).stat().st_size / 1e6)
    return folder


def _fill(folder: Path, onnx_file: Path, provenance: Provenance) -> None:
    shutil.copyfile(onnx_file, folder / ONNX_FILE)
    (folder / PROVENANCE_FILE).write_text(json.dumps(asdict(provenance), indent=2) + "\n")
