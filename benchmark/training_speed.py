"""Images per second of our data loader and training step, next to those of timm's own parts, or of our step with the
teacher's answers read from a cache.

The loaders end at the same point: a normalised float batch with erased boxes on the device. timm's side is its
`create_loader` with the prefetcher, and its `TokenDistillationTask` with its Mixup, optimiser and weight average, put
together as its training script does. Our side is the loader of `deit train`, and `deit train` itself, whose
`--profile` shows the time of the steps without the wait for data.
"""

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import timm
import torch
from timm.data import ImageDataset, Mixup, create_loader
from timm.data.loader import PrefetchLoader
from timm.data.random_erasing import RandomErasing
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.task import TokenDistillationTask
from torch import Tensor
from typer import Option

from benchmark.config import RESULTS, ResultsOption, RoundsOption
from benchmark.results import Figure, Result
from deit.pictures import IMAGE_SUFFIXES
from deit.preprocessing import Preprocessing
from training.checkpoint import save_checkpoint
from training.config import TrainConfig
from training.data import TrainingBatches, mend_posterize
from training.images import LabelledImages, open_images
from training.loop import train
from training.model import Normalize, create_model
from training.opening import timm_preprocessing
from training.processes import Processes, choose_device, choose_precision
from training.sampler import share_out

Turn = dict[str, float]
"""Figures of one turn by name."""

UNITS = {"images_per_s": "images/s", "cpu_ms": "ms"}
"""cpu_ms is the processor time of an image, which other work on the machine changes little."""


@dataclass(frozen=True, kw_only=True)
class TrainingSpeedConfig:
    images: Annotated[Path, Option(help="Photographs: a parquet or tar file, or a data set with a split test.")]
    rounds: RoundsOption = 5
    workers: Annotated[
        int,
        Option(min=0, help="Processes that decode and augment. With 0 the loaders' processor time is measured too."),
    ] = 2
    loader_images: Annotated[int, Option(min=64, help="Images that each loader reads in a turn.")] = 2000
    batch_size: Annotated[int, Option(min=2, help="Images a step.")] = 32
    steps: Annotated[int, Option(min=0, help="Training steps in a turn; 0 measures the loaders only.")] = 5
    compare: Annotated[
        Literal["timm", "teacher-cache"],
        Option(help="With what: timm's loader and step, or our step that reads the teacher's answers from a cache."),
    ] = "timm"
    model: Annotated[str, Option(help="The student, timm's name.")] = "deit_tiny_distilled_patch16_224"
    model_arg: Annotated[list[str] | None, Option(metavar="KEY=VALUE", help="As in `deit train`. Repeatable.")] = None
    image_size: Annotated[int, Option(min=8, help="Side of the student's input in pixels.")] = 224
    teacher: Annotated[str, Option(help="The teacher, timm's name; its weights are random.")] = "resnet18"
    teacher_arg: Annotated[list[str] | None, Option(metavar="KEY=VALUE", help="The same of the teacher.")] = None
    teacher_image_size: Annotated[int | None, Option(min=8, help="Side of the teacher's input. Default: its own.")] = (
        None
    )
    precision: Annotated[Literal["auto", "bf16", "fp16", "fp32"], Option(help="As in `deit train`.")] = "auto"
    compile: Annotated[bool, Option("--compile", help="Compile our side, as `deit train --compile` does.")] = False
    results: ResultsOption = RESULTS


def measure_training(config: TrainingSpeedConfig) -> list[Result]:
    """A result of each part and side; who is measured first alternates."""
    device = choose_device("auto")
    source = open_images(config.images, "test")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        long, short, teacher = folder / "long", folder / "short", folder / "teacher"
        _write_jpeg_folders(source, long, config.loader_images)
        run = TrainConfig(
            data=long,
            name="run",
            runs=folder / "runs",
            model=config.model,
            model_arg=config.model_arg,
            image_size=config.image_size,
            distillation="hard",
            teacher=str(teacher),
            teacher_image_size=config.teacher_image_size,
            auto_augment="rand-m9-mstd0.5-inc1",
            epochs=1,
            warmup_epochs=0,
            batch_size=config.batch_size,
            ema_decay=0.99996,
            precision=config.precision,
            compile=config.compile,
            workers=config.workers,
            profile=True,
        )
        turns = {}
        if config.compare == "timm":
            epochs = {"here": _our_loader(run, device), "timm": _timm_loader(run, device)}
            turns["loader"] = _in_turns(
                config.rounds, {name: partial(_loaded, epoch, config.workers) for name, epoch in epochs.items()}
            )
        if config.steps:
            _write_jpeg_folders(source, short, (config.steps + 1) * config.batch_size)  # the first step warms up
            _write_teacher(config, open_images(short, "train").label_names, teacher)
            if config.compare == "timm":
                sides = {"here": lambda: _our_steps(run, short), "timm": _timm_steps(run, short, device)}
            else:
                cached = replace(run, teacher_cache=folder / "answers")
                _our_steps(cached, short)  # writes the answers
                sides = {
                    "here, teacher asked": lambda: _our_steps(run, short),
                    "here, answers kept": lambda: _our_steps(cached, short),
                }
            turns["step"] = _in_turns(config.rounds, sides)
    precision = str(choose_precision(config.precision, device)).removeprefix("torch.")
    teacher_built = " ".join((config.teacher, *(config.teacher_arg or ())))
    if config.teacher_image_size is not None:
        teacher_built += f" at {config.teacher_image_size}"
    return [
        Result(
            kind="train",
            model=config.model,
            precision=precision if part == "step" else "uint8",
            conditions={
                "part": part,
                "implementation": implementation,
                "batch_size": config.batch_size,
                "device": device.type,
                "compiled": config.compile and implementation != "timm" and part == "step",
                **({"workers": config.workers} if part == "loader" else {"teacher": teacher_built}),
                **({} if config.image_size == 224 else {"image_size": config.image_size}),
                **({"model_arg": " ".join(config.model_arg)} if config.model_arg else {}),
            },
            figures={name: Figure.of([turn[name] for turn in values], UNITS[name]) for name in values[0]},
        )
        for part, sides in turns.items()
        for implementation, values in sides.items()
    ]


def _in_turns(rounds: int, sides: dict[str, Callable[[], Turn]]) -> dict[str, list[Turn]]:
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else reversed(sides):
            turns[name].append(sides[name]())
    return turns


def _write_jpeg_folders(source: LabelledImages, folder: Path, count: int) -> None:
    """`count` files in ImageNet's layout, copied unchanged from the source, which is repeated if it has too few."""
    for place in range(count):
        index = place % len(source)
        name = source.file_name(index)
        suffix = Path(name).suffix if Path(name).suffix.lower() in IMAGE_SUFFIXES else ".jpeg"
        class_folder = folder / "train" / source.label_names[source.label(index)]
        class_folder.mkdir(parents=True, exist_ok=True)
        (class_folder / f"{place}{suffix}").write_bytes(source.encoded(index))
    for class_folder in (folder / "train").iterdir():  # the run of `deit train` evaluates one image a class
        target = folder / "val" / class_folder.name
        target.mkdir(parents=True)
    first = next(file for file in sorted((folder / "train").rglob("*")) if file.is_file())
    (folder / "val" / first.parent.name / first.name).hardlink_to(first)


def _write_teacher(config: TrainingSpeedConfig, label_names: tuple[str, ...], folder: Path) -> None:
    torch.manual_seed(0)
    arguments = TrainConfig(data=Path(), name="teacher", model_arg=config.teacher_arg).model_args
    model = create_model(
        config.teacher, num_classes=len(label_names), image_size=None, drop_path=0, model_args=arguments
    )
    save_checkpoint(folder, model, label_names=label_names, preprocessing=timm_preprocessing(model), deit={})


# -------------------------------------------------------------------------------------------------------------- loaders


def _loaded(epoch: Callable[[], Iterator[Tensor]], workers: int) -> Turn:
    """One epoch, from asking for the first batch to having the last; without workers also its processor time."""
    started, cpu_started = time.perf_counter(), time.process_time()
    count = sum(len(batch) for batch in epoch())
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    rate = {"images_per_s": count / (time.perf_counter() - started)}
    return rate if workers else {**rate, "cpu_ms": 1e3 * (time.process_time() - cpu_started) / count}


def _our_loader(config: TrainConfig, device: torch.device) -> Callable[[], Iterator[Tensor]]:
    """Epochs of the loader of `deit train`."""
    preprocessing = _preprocessing(config)
    normalize = Normalize(preprocessing).to(device)
    erase = RandomErasing(config.random_erasing, mode="pixel", device=device)
    shares = share_out(config, Processes())
    batches = TrainingBatches(open_images(config.data, "train"), config, shares, mean=preprocessing.mean)
    epochs = itertools.count()

    def epoch() -> Iterator[Tensor]:
        for batch, _, _ in batches.epoch(next(epochs)):
            yield erase(normalize(batch.to(device, non_blocking=True)))

    return epoch


def _timm_loader(config: TrainConfig, device: torch.device) -> Callable[[], Iterator[Tensor]]:
    """Epochs of timm's loader."""
    preprocessing = _preprocessing(config)
    dataset = ImageDataset(str(config.data / "train"))
    loader = create_loader(
        dataset,
        input_size=(3, config.image_size, config.image_size),
        batch_size=config.batch_size,
        is_training=True,
        re_prob=config.random_erasing,
        re_mode="pixel",
        scale=(config.min_crop_area, 1.0),
        color_jitter=0.0,
        auto_augment=config.auto_augment,
        interpolation="bicubic",
        mean=preprocessing.mean,
        std=preprocessing.std,
        num_workers=config.workers,
        pin_memory=device.type == "cuda",
        device=device,
        persistent_workers=config.workers > 0,
    )
    mend_posterize(dataset.transform.transforms)  # timm's stops the loader with an error of Pillow now and then

    def epoch() -> Iterator[Tensor]:
        for batch, _ in loader:
            yield batch

    return epoch


def _preprocessing(config: TrainConfig) -> Preprocessing:
    student = create_model(
        config.model, num_classes=2, image_size=config.image_size, drop_path=0, model_args=config.model_args
    )
    return timm_preprocessing(student)


# ---------------------------------------------------------------------------------------------------------------- steps


def _our_steps(config: TrainConfig, data: Path) -> Turn:
    """Images per second of the steps of one run of `deit train`, without waiting for data; the median step counts."""
    with tempfile.TemporaryDirectory() as runs:
        run = replace(config, data=data, runs=Path(runs))
        train(run)
        steps = json.loads((run.folder / "profile.json").read_text())[1:]
    step_s: float = statistics.median(sum(step.values()) - step["data"] for step in steps)
    return {"images_per_s": config.batch_size / step_s}


def _timm_steps(config: TrainConfig, data: Path, device: torch.device) -> Callable[[], Turn]:
    """The same by timm's parts, on uint8 batches that are in memory."""
    preprocessing = _preprocessing(config)
    images = open_images(data, "train")
    classes = len(images.label_names)
    shares = share_out(config, Processes())
    batches = [
        (pixels, targets)
        for pixels, targets, _ in TrainingBatches(images, config, shares, mean=preprocessing.mean).epoch(0)
    ]
    loader = PrefetchLoader(
        batches,  # any iterable will do
        mean=preprocessing.mean,
        std=preprocessing.std,
        device=device,
        re_prob=config.random_erasing,
        re_mode="pixel",
    )
    precision = choose_precision(config.precision, device)

    def turn() -> Turn:
        torch.manual_seed(0)
        student = create_model(
            config.model,
            num_classes=classes,
            image_size=config.image_size,
            drop_path=config.drop_path,
            model_args=config.model_args,
        ).to(device)
        teacher = timm.create_model(f"local-dir:{config.teacher}", pretrained=True).to(device)
        task = TokenDistillationTask(
            student,
            teacher,
            criterion=SoftTargetCrossEntropy(),
            distill_type="hard",
            task_loss_weight=config.label_weight,
            device=device,
            verbose=False,
        )
        task.setup_ema(decay=config.ema_decay, use_warmup=True)
        optimizer = create_optimizer_v2(
            student, opt=config.optimizer, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        mix = Mixup(
            mixup_alpha=config.mixup_alpha,
            cutmix_alpha=config.cutmix_alpha,
            label_smoothing=config.label_smoothing,
            num_classes=classes,
        )
        task.train()
        scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        seconds = []
        started = time.perf_counter()
        for step, (pixels, targets) in enumerate(loader):
            pixels, targets = mix(pixels, targets)
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                loss = task(pixels, targets)["loss"]
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            task.update_ema(step)
            loss.item()  # the script looks at it for its log, and waits for the device
            now = time.perf_counter()
            seconds.append(now - started)
            started = now
        return {"images_per_s": config.batch_size / statistics.median(seconds[1:])}

    return turn
