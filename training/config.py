"""What `deit train` was asked to do. Free of torch, so that `deit train --help` is instant."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Option

from training.preset import preset_titles, read_preset

Distillation = Literal["none", "soft", "hard", "two-class-tokens", "nkd"]
Token = Literal["distillation", "class"]
KlReduction = Literal["batchmean", "numel"]


def _apply_preset(context: typer.Context, name: str | None) -> str | None:
    """Make the preset's values the defaults of this call, below flags and environment; `list` prints the presets."""
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
            raise typer.BadParameter(f"--preset {name}: there is no option {unknown[0]}")
        context.default_map = values
    return name


def _blocks(option: str, text: str) -> tuple[int, ...]:
    """The block numbers of an option such as 0,1; `none` are none."""
    try:
        return () if text == "none" else tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"{option} {text!r}: must be block numbers such as 0,1, or none") from None


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Learning rates are absolute: nothing scales them behind your back.

    `preset` is a note here: its values are applied where the command line is read.
    """

    data: Annotated[
        Path,
        Option(
            help="Data set: a folder with train and test as parquet files, or as folders with a folder for each class."
        ),
    ]
    train_images: Annotated[
        int | None,
        Option(min=1, help="Train on this many of the images, spread evenly over the data set; all of them."),
    ] = None
    name: Annotated[str, Option(help="Name of the run; everything it writes goes to RUNS/NAME.")]
    runs: Annotated[Path, Option(help="Folder that holds the runs.")] = Path("runs")
    resume: Annotated[bool, Option("--resume", help="Go on after the last epoch that RUNS/NAME finished.")] = False

    profile: Annotated[bool, Option("--profile", help="Tell after each epoch where the time of its steps went.")] = (
        False
    )
    report: Annotated[bool, Option("--report", help="At the end write RUNS/NAME/report.md with the curves.")] = False

    preset: Annotated[
        str | None,
        Option(
            is_eager=True,
            callback=_apply_preset,
            help="Recipe that gives the other options their defaults; `list` prints ours, or give a TOML file.",
        ),
    ] = None
    model: Annotated[str, Option(help="timm's name of the architecture.")] = "deit_tiny_distilled_patch16_224"
    model_arg: Annotated[
        list[str] | None,
        Option(
            metavar="KEY=VALUE",
            help="Argument of timm's create_model, value in JSON: patch_size=4. Repeatable.",
        ),
    ] = None
    image_size: Annotated[int, Option(min=8, help="Side of the images the model reads, in pixels.")] = 224
    crop_pct: Annotated[
        float,
        Option(help="Share of the shorter side that the evaluation crop keeps; 0.875 resizes to 256 for 224."),
    ] = 0.875
    drop_path: Annotated[float, Option(min=0, max=0.9, help="Stochastic depth: rate of the last block.")] = 0.1

    initial_checkpoint: Annotated[
        str | None,
        Option(help="Weights to start from: checkpoint folder, weights file (also DeiT's .pth) or timm's tagged name."),
    ] = None
    position_antialias: Annotated[
        bool, Option("--position-antialias", help="Resize the position embedding timm's way, not DeiT's.")
    ] = False

    distillation: Annotated[
        Distillation,
        Option(
            help="hard: the teacher's decision; soft: its probabilities; nkd: the same, normalised, beside the whole "
            "loss of the label; two-class-tokens: the paper's control, two tokens that both learn the label."
        ),
    ] = "none"
    token: Annotated[
        Token,
        Option(help="What learns from the teacher; class is the usual distillation, for models without _distilled."),
    ] = "distillation"
    teacher: Annotated[
        str | None, Option(help="Checkpoint folder, or timm's tagged name, such as regnety_160.deit_in1k.")
    ] = None
    teacher_image_size: Annotated[
        int | None, Option(min=8, help="Side of the images the teacher reads; its own unless given.")
    ] = None
    label_weight: Annotated[
        float,
        Option(min=0, max=1, help="Share of the label's loss, the rest is the teacher's: 1 - the paper's lambda."),
    ] = 0.5
    temperature: Annotated[float, Option(help="Of soft distillation.")] = 3.0
    kl_reduction: Annotated[
        KlReduction,
        Option(
            help="Of soft distillation: batchmean is the paper's; numel divides by the classes too, as DeiT's code."
        ),
    ] = "batchmean"
    nkd_gamma: Annotated[float, Option(min=0, help="Of nkd: weight of the classes that are not the label's.")] = 1.0
    nkd_temperature: Annotated[float, Option(help="Of nkd, on those classes.")] = 1.0

    features: Annotated[
        Literal["none", "vitkd"],
        Option(help="vitkd: learn from the teacher's tokens too, added to any --distillation. For two transformers."),
    ] = "none"
    vitkd_mimic: Annotated[
        str, Option(help="Blocks whose tokens shall equal the teacher's, counted from 0, from -1 backwards; or none.")
    ] = "0,1"
    vitkd_generate: Annotated[
        str,
        Option(
            help="Blocks whose masked tokens shall generate the teacher's; -1 is the output after the norm; or none."
        ),
    ] = "-1"
    vitkd_point: Annotated[
        Literal["ffn", "mha"],
        Option(help="Where in a block tokens are read: ffn is after it, mha after its attention. Not of -1."),
    ] = "ffn"
    vitkd_mask_ratio: Annotated[float, Option(help="Share of the tokens that are masked for --vitkd-generate.")] = 0.5
    vitkd_reduction: Annotated[
        Literal["sum", "mean"],
        Option(help="Of the squared errors. sum is the published one; mean does not depend on size and needs weights."),
    ] = "sum"
    vitkd_mimic_weight: Annotated[
        float | None, Option(min=0, help="Published for sum: 3e-5, which is 4.52 for mean in DeiT-Ti from DeiT III-S.")
    ] = None
    vitkd_generate_weight: Annotated[
        float | None, Option(min=0, help="Published for sum: 3e-6, which is 0.226 for mean in the same pair.")
    ] = None

    epochs: Annotated[int, Option(min=1)] = 300
    batch_size: Annotated[int, Option(min=2, help="Images a step, over all processes.")] = 1024
    device_batch_size: Annotated[
        int | None,
        Option(min=1, help="Images that fit a device; a step accumulates as many as --batch-size needs."),
    ] = None
    repeated_augmentation: Annotated[
        int, Option(min=1, help="Draws of an image in a row; 3 is DeiT's, an epoch then sees a third of the images.")
    ] = 1
    optimizer: Annotated[str, Option(help="timm's name of the optimiser.")] = "adamw"
    learning_rate: Annotated[float, Option(help="At the peak, for the whole batch.")] = 1e-3
    min_learning_rate: Annotated[float, Option(help="Where the cosine ends.")] = 1e-5
    warmup_learning_rate: Annotated[float, Option(help="Where the warm-up starts.")] = 1e-6
    warmup_epochs: Annotated[int, Option(min=0, help="Linear warm-up, part of the epochs.")] = 5
    schedule: Annotated[
        Literal["step", "official"],
        Option(help="step: the rate moves with every step; official: once an epoch and one late, as DeiT's code."),
    ] = "step"
    weight_decay: Annotated[float, Option(min=0, help="Not applied to biases, norms, tokens and positions.")] = 0.05
    clip_grad_norm: Annotated[float | None, Option(min=0, help="Clip the gradient's norm; off unless given.")] = None
    ema_decay: Annotated[
        float | None,
        Option(min=0, max=1, help="Average the weights with this decay, evaluate and save the average as well."),
    ] = None

    min_crop_area: Annotated[
        float,
        Option(min=0.01, max=1, help="Smallest share of the area that a random crop keeps (images above 32 px)."),
    ] = 0.08
    auto_augment: Annotated[
        str | None,
        Option(help="timm's RandAugment description, such as rand-m9-mstd0.5-inc1; off unless given."),
    ] = None
    random_erasing: Annotated[float, Option(min=0, max=1, help="Share of the images with a box of noise.")] = 0.25
    mixup_alpha: Annotated[float, Option(min=0, help="Beta parameter of mixup; 0 switches it off.")] = 0.8
    cutmix_alpha: Annotated[float, Option(min=0, help="Beta parameter of CutMix; 0 switches it off.")] = 1.0
    mixing_probability: Annotated[float, Option(min=0, max=1, help="Share of the batches that are mixed.")] = 1.0
    label_smoothing: Annotated[float, Option(min=0, max=0.9)] = 0.1

    pixel_bank: Annotated[
        bool,
        Option(
            "--pixel-bank",
            help="For small images of one size: decode all once, keep them on the device, crop and flip them there.",
        ),
    ] = False
    evaluate_every: Annotated[
        int,
        Option(min=1, help="Evaluate, and save checkpoint and resume.pt, after each so many epochs and the last."),
    ] = 1

    max_corrupt_share: Annotated[
        float, Option(min=0, max=1, help="Share of the images that may be undecodable; they are counted and skipped.")
    ] = 0.01

    precision: Annotated[
        Literal["auto", "bf16", "fp16", "fp32"], Option(help="auto: bf16 autocast where the machine computes in it.")
    ] = "auto"
    channels_last: Annotated[bool, Option("--channels-last", help="Memory order that convnets like on GPUs.")] = False
    compile: Annotated[bool, Option("--compile", help="torch.compile: minutes of start for faster steps.")] = False
    device: Annotated[str, Option(help="torch's name of the device; auto: a GPU if there is one.")] = "auto"
    workers: Annotated[int, Option(min=0, help="Processes that decode and augment, for each training process.")] = 2
    seed: Annotated[int, Option(min=0)] = 0

    def __post_init__(self) -> None:
        if not self.has_teacher and self.teacher is not None:
            raise ValueError(
                f"--teacher with --distillation {self.distillation}, which asks no teacher: add --distillation hard, "
                "or leave the teacher out"
            )
        if self.has_teacher and self.teacher is None:
            asking = f"--distillation {self.distillation}" if self.features == "none" else f"--features {self.features}"
            raise ValueError(f"{asking} needs a --teacher: a checkpoint folder or a timm name")
        if self.teacher is None and self.teacher_image_size is not None:
            raise ValueError("--teacher-image-size without a --teacher")
        if self.initial_checkpoint is None and self.position_antialias:
            raise ValueError("--position-antialias without an --initial-checkpoint, whose positions it would resize")
        weighed = self.distillation not in ("none", "nkd")
        if weighed and self.label_weight == 1:
            raise ValueError(f"--label-weight 1 leaves nothing of --distillation {self.distillation}: lower it")
        if weighed and self.label_weight == 0 and self.token == "distillation":
            raise ValueError("--label-weight 0 leaves the class head untrained: raise it, or take --token class")
        for option, temperature in (("--temperature", self.temperature), ("--nkd-temperature", self.nkd_temperature)):
            if temperature <= 0:
                raise ValueError(f"{option} {temperature:g}: must be above 0")
        if self.features == "vitkd":
            if not self.vitkd_mimic_blocks and not self.vitkd_generate_blocks:
                raise ValueError("--features vitkd with nothing to mimic and nothing to generate")
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
            raise ValueError(
                f"--auto-augment {self.auto_augment} with --pixel-bank, which has no such operations: leave one out"
            )
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
        """Whether the strategy asks a teacher."""
        return self.distillation in ("soft", "hard", "nkd") or self.features != "none"

    @property
    def vitkd_mimic_blocks(self) -> tuple[int, ...]:
        """Blocks to mimic."""
        return _blocks("--vitkd-mimic", self.vitkd_mimic)

    @property
    def vitkd_generate_blocks(self) -> tuple[int, ...]:
        """Blocks to generate."""
        return _blocks("--vitkd-generate", self.vitkd_generate)

    @property
    def vitkd_weights(self) -> tuple[float, float]:
        """Weights of mimicking and generation: the given ones, else for sum the published ones."""
        mimic, generate = self.vitkd_mimic_weight, self.vitkd_generate_weight
        if self.vitkd_reduction == "mean" and (mimic is None or generate is None):
            raise ValueError(
                "--vitkd-reduction mean needs --vitkd-mimic-weight and --vitkd-generate-weight, whose published values "
                "are for sums: 4.52 and 0.226 are the same for DeiT-Ti from DeiT III-S"
            )
        return 3e-5 if mimic is None else mimic, 3e-6 if generate is None else generate

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed by mixup or CutMix."""
        return self.mixing_probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return self.runs / self.name

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the weights, as plain data: all but where the run lies, what it runs on and what it tells."""
        values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        for other in ("runs", "resume", "device", "workers", "profile", "report", "evaluate_every"):
            del values[other]
        return values

    @property
    def model_args(self) -> dict[str, Any]:
        """`--model-arg` as a dictionary; a value that is no JSON is taken as text."""
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
