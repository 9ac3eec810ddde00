"""The options of `deit train`. Free of torch, so that `deit train --help` is instant."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Option

from deit.options import MODEL_SOURCES
from training.columns import IMAGE_COLUMN_HELP, LABEL_COLUMN_HELP, Columns
from training.preset import preset_titles, read_preset

Distillation = Literal["none", "soft", "hard", "two-class-tokens", "nkd"]
Token = Literal["distillation", "class"]
KlReduction = Literal["batchmean", "numel"]

NOT_SETTINGS = (
    *("runs", "resume", "device", "workers", "profile", "report", "evaluate_every", "teacher_cache", "keep_best"),
    "patience",
)
"""Options that do not affect the weights: the run's folder, its hardware, its reporting and its length."""


def _apply_preset(context: typer.Context, name: str | None) -> str | None:
    """Make the preset's values the defaults, below flags and environment; `list` prints the presets and exits."""
    if name == "list":
        for preset, title in preset_titles().items():
            typer.echo(f"{preset:28}{title}")
        raise typer.Exit
    if name is not None:
        try:
            values = read_preset(name)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        options = {parameter.name for parameter in context.command.params}
        if unknown := sorted(values.keys() - options):
            raise typer.BadParameter(f"--preset {name}: no option is called {unknown[0]}")
        context.default_map = values
    return name


def _blocks(option: str, text: str) -> tuple[int, ...]:
    """The block numbers of an option such as 0,1; none of them for `none`."""
    try:
        return () if text == "none" else tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"{option} {text!r}: must be block numbers such as 0,1, or none") from None


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Learning rates are absolute: nothing scales them.

    `preset` is only recorded here: its values are applied where the command line is read.
    """

    data: Annotated[
        Path,
        Option(
            help="Data set: a folder with the splits train, and val or test or both, as parquet files, tar shards, CSV "
            "lists or class folders."
        ),
    ]
    image_column: Annotated[str | None, Option(help=IMAGE_COLUMN_HELP)] = None
    label_column: Annotated[str | None, Option(help=LABEL_COLUMN_HELP)] = None
    val_share: Annotated[
        float,
        Option(
            min=0,
            max=0.9,
            help="Hold out this share of each class's training images as val, to choose the best epoch; test, if there "
            "is one, is evaluated once at the end. For data without val.",
        ),
    ] = 0.0
    train_images: Annotated[
        int | None,
        Option(
            min=1,
            help="Train on this many images, with each class in proportion. Default: all. Lower it to compare losses.",
        ),
    ] = None
    name: Annotated[str, Option(help="Name of the run, which writes to RUNS/NAME.")]
    runs: Annotated[Path, Option(help="Folder that holds the runs.")] = Path("runs")
    resume: Annotated[bool, Option("--resume", help="Continue RUNS/NAME where it stopped, with the same settings.")] = (
        False
    )

    profile: Annotated[
        bool, Option("--profile", help="Report after each epoch where its time went; this slows training on a GPU.")
    ] = False
    report: Annotated[bool, Option("--report", help="Write RUNS/NAME/report.md with the curves at the end.")] = False

    preset: Annotated[
        str | None,
        Option(
            is_eager=True,
            callback=_apply_preset,
            help="Recipe that sets the defaults of the other options: one of ours (`list` prints them) or a TOML file.",
        ),
    ] = None
    model: Annotated[str, Option(help="Architecture by its timm name.")] = "deit_tiny_distilled_patch16_224"
    model_arg: Annotated[
        list[str] | None,
        Option(
            metavar="KEY=VALUE",
            help="Argument of timm's create_model with a value in JSON, such as patch_size=4. Repeatable.",
        ),
    ] = None
    image_size: Annotated[
        int, Option(min=8, help="Side of the model's input in pixels. Lower it for small images or a slow machine.")
    ] = 224
    crop_pct: Annotated[
        float,
        Option(help="Share of the shorter side that the evaluation crop keeps: 0.875 resizes to 256 and crops 224."),
    ] = 0.875
    drop_path: Annotated[
        float, Option(min=0, max=0.9, help="Stochastic depth: rate of the last block. 0 suits short runs.")
    ] = 0.1

    initial_checkpoint: Annotated[
        str | None,
        Option(help=f"Weights to start from, above all for small data: {MODEL_SOURCES}."),
    ] = None
    position_antialias: Annotated[
        bool,
        Option(
            "--position-antialias",
            help="Antialias when resizing the position embedding, as timm does and DeiT does not.",
        ),
    ] = False

    freeze_blocks: Annotated[
        str | None,
        Option(
            metavar="N|all",
            help="Do not train the stem and the first N blocks of an --initial-checkpoint; all: train only the heads, "
            "and the distillation token. For little data, or a slow machine.",
        ),
    ] = None

    distillation: Annotated[
        Distillation,
        Option(
            help="What to learn from the teacher. hard: its predicted class; soft: its probabilities; nkd: its "
            "normalised probabilities, added to the full label loss; two-class-tokens: nothing, the paper's control "
            "with two tokens that both learn the label."
        ),
    ] = "none"
    token: Annotated[
        Token,
        Option(help="Token that learns from the teacher; class is for models without _distilled in their name."),
    ] = "distillation"
    teacher: Annotated[str | None, Option(help=f"Teacher, such as regnety_160.deit_in1k: {MODEL_SOURCES}.")] = None
    teacher_image_size: Annotated[
        int | None, Option(min=8, help="Side of the teacher's input in pixels. Default: its own.")
    ] = None
    teacher_cache: Annotated[
        Path | None,
        Option(
            help="Folder that caches the teacher's outputs. Runs with the same data, seed, augmentation, batch and "
            "teacher reuse them, and load the teacher only if some are missing."
        ),
    ] = None
    teacher_cache_logits: Annotated[
        int,
        Option(
            min=1,
            help="Largest logits per image that the cache keeps, for soft and nkd; hard keeps the class.",
        ),
    ] = 10
    label_weight: Annotated[
        float,
        Option(
            min=0,
            max=1,
            help="Weight of the label loss; the teacher's has the rest. 1 - the paper's lambda.",
        ),
    ] = 0.5
    temperature: Annotated[float, Option(help="Temperature of soft distillation; higher is flatter.")] = 3.0
    kl_reduction: Annotated[
        KlReduction,
        Option(
            help="How soft distillation averages: batchmean over images, as in the paper; numel over classes too, as "
            "in DeiT's code."
        ),
    ] = "batchmean"
    nkd_gamma: Annotated[float, Option(min=0, help="Weight that nkd gives to classes other than the label.")] = 1.0
    nkd_temperature: Annotated[float, Option(help="Temperature of nkd on those classes.")] = 1.0

    features: Annotated[
        Literal["none", "vitkd"],
        Option(help="vitkd: also learn from the teacher's tokens, with any --distillation. Both must be transformers."),
    ] = "none"
    vitkd_mimic: Annotated[
        str, Option(help="Blocks whose tokens learn to match the teacher's, from 0, or from -1 backwards; or none.")
    ] = "0,1"
    vitkd_generate: Annotated[
        str,
        Option(
            help="Blocks whose masked tokens learn to generate the teacher's; -1 is the output after the norm; or none."
        ),
    ] = "-1"
    vitkd_point: Annotated[
        Literal["ffn", "mha"],
        Option(help="Where in a block tokens are read: ffn at its end, mha after its attention. Does not apply to -1."),
    ] = "ffn"
    vitkd_mask_ratio: Annotated[float, Option(help="Share of tokens masked for --vitkd-generate.")] = 0.5
    vitkd_reduction: Annotated[
        Literal["sum", "mean"],
        Option(
            help="How squared errors are reduced: sum as published; mean does not depend on size and needs weights."
        ),
    ] = "sum"
    vitkd_mimic_weight: Annotated[
        float | None,
        Option(
            min=0,
            help="Weight of mimicking. Default for sum: 3e-5, as published. Needed for mean, such as 4.52 for DeiT-Ti "
            "from DeiT III-S.",
        ),
    ] = None
    vitkd_generate_weight: Annotated[
        float | None,
        Option(
            min=0,
            help="Weight of generation. Default for sum: 3e-6, as published. Needed for mean, such as 0.226.",
        ),
    ] = None

    epochs: Annotated[int, Option(min=1, help="Passes over the training images.")] = 300
    batch_size: Annotated[int, Option(min=2, help="Images per step, over all processes. Lower it for small data.")] = (
        1024
    )
    device_batch_size: Annotated[
        int | None,
        Option(
            min=1,
            help="Images per forward pass on a device; gradients are accumulated up to --batch-size. Lower it if "
            "memory runs out.",
        ),
    ] = None
    repeated_augmentation: Annotated[
        int,
        Option(
            min=1,
            help="How many times in a row an image is drawn, each time augmented anew. DeiT uses 3; an epoch then "
            "sees a third of the images.",
        ),
    ] = 1
    balanced_sampling: Annotated[
        bool,
        Option(
            "--balanced-sampling",
            help="Draw images of each class equally often, with replacement. For classes of very different sizes.",
        ),
    ] = False
    optimizer: Annotated[str, Option(help="Optimiser by its timm name.")] = "adamw"
    learning_rate: Annotated[float, Option(help="Peak learning rate, for the whole batch.")] = 1e-3
    min_learning_rate: Annotated[float, Option(help="Learning rate at the end of the cosine.")] = 1e-5
    warmup_learning_rate: Annotated[float, Option(help="Learning rate at the start of the warm-up.")] = 1e-6
    warmup_epochs: Annotated[
        int, Option(min=0, help="Epochs of linear warm-up, included in --epochs. Lower it for short runs.")
    ] = 5
    layer_decay: Annotated[
        float | None,
        Option(
            min=0.01,
            max=1,
            help="Factor by which the learning rate falls from each block to the one before it, such as 0.75. "
            "Default: the same rate for all. For pretrained weights and little data.",
        ),
    ] = None
    schedule: Annotated[
        Literal["step", "official"],
        Option(
            help="When the learning rate changes. step: at every step; official: once per epoch and one late, as in "
            "DeiT's code."
        ),
    ] = "step"
    weight_decay: Annotated[
        float, Option(min=0, help="Weight decay; biases, norms, tokens and positions are exempt.")
    ] = 0.05
    clip_grad_norm: Annotated[
        float | None, Option(min=0, help="Clip the gradient's norm to this. Default: off. Set it if the loss jumps.")
    ] = None
    ema_decay: Annotated[
        float | None,
        Option(min=0, max=1, help="Also evaluate and save an average of the weights with this decay, such as 0.99996."),
    ] = None

    min_crop_area: Annotated[
        float,
        Option(
            min=0.01,
            max=1,
            help="Smallest share of the area that a random crop keeps, for inputs above 32 pixels. Raise it for short "
            "runs.",
        ),
    ] = 0.08
    auto_augment: Annotated[
        str | None,
        Option(help="RandAugment in timm's notation, such as rand-m9-mstd0.5-inc1. Default: off."),
    ] = None
    random_erasing: Annotated[float, Option(min=0, max=1, help="Share of the images in which a box is erased.")] = 0.25
    mixup_alpha: Annotated[float, Option(min=0, help="Beta parameter of mixup; 0 turns it off.")] = 0.8
    cutmix_alpha: Annotated[float, Option(min=0, help="Beta parameter of CutMix; 0 turns it off.")] = 1.0
    mixing_probability: Annotated[
        float, Option(min=0, max=1, help="Share of the batches that are mixed. 0 suits short runs.")
    ] = 1.0
    label_smoothing: Annotated[float, Option(min=0, max=0.9, help="Share of a label spread over all classes.")] = 0.1

    pixel_bank: Annotated[
        bool,
        Option(
            "--pixel-bank",
            help="Decode all images once, keep them on the device, crop and flip them there. For small images of one "
            "size, on a GPU.",
        ),
    ] = False
    evaluate_every: Annotated[
        int,
        Option(
            min=1,
            help="Evaluate and save only every N epochs, and after the last. Raise it if epochs take seconds.",
        ),
    ] = 1

    keep_best: Annotated[
        bool,
        Option(
            "--keep-best",
            help="Also keep the best epoch's weights in checkpoint-best, by top-1 on val (or test, without val).",
        ),
    ] = False
    patience: Annotated[
        int | None,
        Option(min=1, help="Stop after this many epochs without a better top-1 on val (or test). Default: never."),
    ] = None

    max_corrupt_share: Annotated[
        float, Option(min=0, max=1, help="Share of images that may be undecodable; they are counted and skipped.")
    ] = 0.01

    precision: Annotated[
        Literal["auto", "bf16", "fp16", "fp32"],
        Option(help="Precision of the arithmetic. auto: bf16 if the machine has it, else fp32."),
    ] = "auto"
    channels_last: Annotated[
        bool, Option("--channels-last", help="Channels-last memory order, faster for convnets on GPUs.")
    ] = False
    compile: Annotated[
        bool, Option("--compile", help="Use torch.compile: minutes at the start, then faster steps.")
    ] = False
    device: Annotated[str, Option(help="torch device, such as cuda:1. auto: a GPU if there is one.")] = "auto"
    workers: Annotated[
        int,
        Option(min=0, help="Processes that decode and augment, per training process. Raise it if steps wait for data."),
    ] = 2
    seed: Annotated[int, Option(min=0, help="Random seed.")] = 0

    def __post_init__(self) -> None:
        if not self.has_teacher and self.teacher is not None:
            raise ValueError(
                f"--teacher with --distillation {self.distillation}, which does not use one: add --distillation hard, "
                "or leave --teacher out"
            )
        if self.has_teacher and self.teacher is None:
            asking = f"--distillation {self.distillation}" if self.features == "none" else f"--features {self.features}"
            raise ValueError(f"{asking} needs a --teacher: give a checkpoint folder or a timm name")
        if self.teacher is None and self.teacher_image_size is not None:
            raise ValueError("--teacher-image-size needs a --teacher")
        if self.teacher_cache is not None and (self.teacher is None or self.features != "none"):
            raise ValueError("--teacher-cache stores logits and classes: it needs a --teacher, and --features none")
        if self.initial_checkpoint is None and self.position_antialias:
            raise ValueError("--position-antialias needs an --initial-checkpoint, whose position embedding it resizes")
        if self.freeze_blocks is not None:
            if self.freeze_blocks != "all" and not self.freeze_blocks.isdecimal():
                raise ValueError(f"--freeze-blocks {self.freeze_blocks!r}: must be a number of blocks, or all")
            if self.initial_checkpoint is None:
                raise ValueError("--freeze-blocks needs an --initial-checkpoint: random weights must be trained")
        weighed = self.distillation not in ("none", "nkd")
        if weighed and self.label_weight == 1:
            raise ValueError(f"--label-weight 1 turns --distillation {self.distillation} off: lower it")
        if weighed and self.label_weight == 0 and self.token == "distillation":
            raise ValueError("--label-weight 0 leaves the class head untrained: raise it, or use --token class")
        for option, temperature in (("--temperature", self.temperature), ("--nkd-temperature", self.nkd_temperature)):
            if temperature <= 0:
                raise ValueError(f"{option} {temperature:g}: must be above 0")
        if self.features == "vitkd":
            if not self.vitkd_mimic_blocks and not self.vitkd_generate_blocks:
                raise ValueError(
                    "--features vitkd has nothing to mimic and nothing to generate: set one of --vitkd-mimic and "
                    "--vitkd-generate"
                )
            if not 0 < self.vitkd_mask_ratio <= 1:
                raise ValueError(f"--vitkd-mask-ratio {self.vitkd_mask_ratio:g}: must be above 0 and at most 1")
            self.vitkd_weights  # noqa: B018  a missing weight is found here
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"--min-learning-rate {self.min_learning_rate:g} is above --learning-rate {self.learning_rate:g}: "
                "the cosine would rise"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"--warmup-epochs {self.warmup_epochs}: must be below --epochs {self.epochs}")
        if self.warmup_epochs and self.warmup_learning_rate > self.learning_rate:
            raise ValueError(
                f"--warmup-learning-rate {self.warmup_learning_rate:g} is above --learning-rate "
                f"{self.learning_rate:g}: the warm-up would fall"
            )
        if self.pixel_bank and self.auto_augment is not None:
            raise ValueError(f"--pixel-bank does not support --auto-augment {self.auto_augment}: leave one out")
        if self.device_batch_size is not None and self.batch_size % self.device_batch_size:
            raise ValueError(
                f"--device-batch-size {self.device_batch_size} does not divide --batch-size {self.batch_size}"
            )
        for option, size in (("--batch-size", self.batch_size), ("--device-batch-size", self.device_batch_size)):
            if self.mixes and size is not None and size % 2:
                raise ValueError(f"{option} {size}: mixup pairs the images of a batch, so it must be even")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"--crop-pct {self.crop_pct}: must be above 0 and at most 1")
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"--name {self.name!r}: must be a folder name")
        self.model_args  # noqa: B018  a bad --model-arg is found here

    @property
    def has_teacher(self) -> bool:
        """Whether the strategy uses a teacher."""
        return self.distillation in ("soft", "hard", "nkd") or self.features != "none"

    @property
    def vitkd_mimic_blocks(self) -> tuple[int, ...]:
        return _blocks("--vitkd-mimic", self.vitkd_mimic)

    @property
    def vitkd_generate_blocks(self) -> tuple[int, ...]:
        return _blocks("--vitkd-generate", self.vitkd_generate)

    @property
    def vitkd_weights(self) -> tuple[float, float]:
        """Weights of mimicking and generation: as given, or else the published ones, which are for sum."""
        mimic, generate = self.vitkd_mimic_weight, self.vitkd_generate_weight
        if self.vitkd_reduction == "mean" and (mimic is None or generate is None):
            raise ValueError(
                "--vitkd-reduction mean needs --vitkd-mimic-weight and --vitkd-generate-weight, because the published "
                "values are for sums: 4.52 and 0.226 are equivalent for DeiT-Ti from DeiT III-S"
            )
        return 3e-5 if mimic is None else mimic, 3e-6 if generate is None else generate

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed by mixup or CutMix."""
        return self.mixing_probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

    @property
    def columns(self) -> Columns:
        """The columns of the data that hold image and class."""
        return Columns(self.image_column, self.label_column)

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return self.runs / self.name

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that affect the weights, as plain data: all but the run's folder, hardware and reporting."""
        values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        for other in NOT_SETTINGS:
            del values[other]
        if self.teacher_cache is None or self.distillation == "hard":
            values["teacher_cache_logits"] = None  # the class is kept, and no logits
        return values

    @property
    def model_args(self) -> dict[str, Any]:
        """`--model-arg` as a dictionary; a value that is not JSON is taken as text."""
        arguments: dict[str, Any] = {}
        for text in self.model_arg or []:
            key, equals, value = text.partition("=")
            if not equals or not key.isidentifier():
                raise ValueError(f"--model-arg {text!r}: must be KEY=VALUE, such as patch_size=4")
            try:
                arguments[key] = json.loads(value)
            except json.JSONDecodeError:
                arguments[key] = value
        return arguments
