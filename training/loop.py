"""One training run, top to bottom."""

import json
import logging
import math
import time
from contextlib import nullcontext

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from timm.data import Mixup
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from deit.durable import write_file
from deit.errors import TrainingError
from deit.preprocessing import Preprocessing
from training.checkpoint import save_checkpoint
from training.config import TrainConfig
from training.data import epoch_seed, evaluation_batches, seed_everything, training_batches
from training.distillation import DistillationLoss, Objective, check_architecture
from training.evaluate import evaluate
from training.images import open_images
from training.model import Normalize, create_model, load_teacher
from training.resume import ResumeState, prepare_run_folder

logger = logging.getLogger(__name__)


def train(config: TrainConfig) -> None:
    """Train what `config` asks for and leave a checkpoint folder.

    Everything random in an epoch follows from the seed and the epoch's number, so a run that was killed and resumed
    gives the same weights as one that was not.
    """
    # ---------------------------------------------------------------------------------------------------------- data
    train_images, test_images = open_images(config.data, "train"), open_images(config.data, "test")
    if test_images.label_names != train_images.label_names:
        raise TrainingError(f"{config.data}: train and test name different classes")
    if len(train_images) < config.batch_size:
        raise TrainingError(
            f"{config.data} has {len(train_images)} training images, fewer than one batch of {config.batch_size}: "
            "lower --batch-size"
        )
    label_names = train_images.label_names
    preprocessing = Preprocessing(
        image_size=config.image_size,
        crop_pct=config.crop_pct,
        interpolation="bicubic",
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )

    # ------------------------------------------------------------------------------------------- student and teacher
    device = choose_device(config.device)
    seed_everything(config.seed)
    model = create_model(
        config.model,
        num_classes=len(label_names),
        image_size=config.image_size,
        drop_path=config.drop_path,
        model_args=config.model_args,
    ).to(device)
    check_architecture(config.model, model, config.distillation, config.token)
    objective = Objective(
        model,
        DistillationLoss(
            distillation=config.distillation,
            label_weight=config.label_weight,
            temperature=config.temperature,
            kl_reduction=config.kl_reduction,
            label_smoothing=config.label_smoothing,
        ),
    )
    teacher = None
    if config.teacher is not None:
        teacher = load_teacher(config.teacher, label_names=label_names, student=preprocessing).to(device)

    # -------------------------------------------------------------------------------------- augmentation on the device
    normalize = Normalize(preprocessing).to(device)
    erase = RandomErasing(config.random_erasing, mode="pixel", device=device)
    mix = None
    if config.mixes:
        mix = Mixup(
            mixup_alpha=config.mixup_alpha,
            cutmix_alpha=config.cutmix_alpha,
            prob=config.mixing_probability,
            label_smoothing=config.label_smoothing,
            num_classes=len(label_names),
        )

    # ------------------------------------------------------------------------------------------ optimiser and schedule
    optimizer = create_optimizer_v2(
        model, opt=config.optimizer, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    steps_per_epoch = len(train_images) // config.batch_size
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        warmup_lr=config.warmup_learning_rate,
        min_lr=config.min_learning_rate,
        step_on_epochs=False,  # the learning rate moves with every step, not once an epoch
        updates_per_epoch=steps_per_epoch,
    )
    autocast = choose_autocast(config.precision, device)

    # -------------------------------------------------------------------------------------------------- start or resume
    state: ResumeState = prepare_run_folder(config)
    if state.weights is not None:
        model.load_state_dict(state.weights)
        optimizer.load_state_dict(state.optimizer)
        logger.info("resuming %s after epoch %d of %d", config.folder, state.epochs_done, config.epochs)
    logger.info(
        "%s: %.2f M parameters on %s, %s; %d images, %d classes, %d steps of %d an epoch, peak learning rate %g, "
        "teacher %s",
        config.model,
        sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        device,
        "float32" if isinstance(autocast, nullcontext) else "bfloat16 autocast",
        len(train_images),
        len(label_names),
        steps_per_epoch,
        config.batch_size,
        config.learning_rate,
        config.teacher,
    )

    # -------------------------------------------------------------------------------------------------------- epochs
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    for epoch in range(state.epochs_done, config.epochs):
        seed_everything(epoch_seed(config.seed, epoch))
        model.train()
        started, loss_sum = time.monotonic(), 0.0
        with Progress(*columns, transient=True) as progress:
            bar = progress.add_task(f"epoch {epoch + 1}/{config.epochs}", total=steps_per_epoch)
            batches = training_batches(train_images, config, epoch, preprocessing.mean)
            for index, (images, targets) in enumerate(batches):
                scheduler.step_update(epoch * steps_per_epoch + index)
                images = erase(normalize(images.to(device, non_blocking=True)))  # DeiT erases before it mixes
                targets = targets.to(device, non_blocking=True)
                if mix is not None:
                    images, targets = mix(images, targets)
                with autocast:
                    loss = objective(images, targets, None if teacher is None else teacher(images))

                optimizer.zero_grad()
                loss.backward()
                if config.clip_grad_norm is not None:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
                optimizer.step()

                loss_sum += (step_loss := loss.item())
                if not math.isfinite(step_loss):
                    raise TrainingError(
                        f"the loss is {step_loss} at step {index} of epoch {epoch + 1}. {config.folder} keeps the "
                        f"state after epoch {epoch}: go on from there with --resume and a lower --learning-rate"
                    )
                progress.update(bar, advance=1, description=f"epoch {epoch + 1}/{config.epochs} loss {step_loss:.3f}")
        train_s = time.monotonic() - started

        accuracy = evaluate(
            model, evaluation_batches(test_images, preprocessing, 256, config.workers), normalize, device
        )
        record = {
            "epoch": epoch + 1,
            "loss": round(loss_sum / steps_per_epoch, 5),
            "learning_rate": optimizer.param_groups[0]["lr"],
            "train_images_per_s": round(steps_per_epoch * config.batch_size / train_s, 1),
            "train_s": round(train_s, 1),
            **{f"test_{key}": round(value, 5) for key, value in accuracy.items()},
        }
        logger.info("epoch %d/%d %s", epoch + 1, config.epochs, json.dumps(record))

        # the checkpoint first: if the run dies between the two, --resume repeats the epoch and writes the same again
        state.metrics.append(record)
        save_checkpoint(
            config.folder / "checkpoint",
            model,
            label_names=label_names,
            preprocessing=preprocessing,
            deit={
                "recipe": config.settings,
                "teacher": config.teacher,
                "distillation": config.distillation,
                "epoch": epoch + 1,
                "metrics": accuracy,
            },
        )
        state.save(config, epochs_done=epoch + 1, weights=model.state_dict(), optimizer=optimizer.state_dict())
        write_file(config.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in state.metrics))
    logger.info("%s is done; `deit export --checkpoint %s` publishes it", config.folder, config.folder / "checkpoint")


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"--device {name}: {error}") from error
    return device


def choose_autocast(precision: str, device: torch.device) -> torch.autocast | nullcontext[None]:
    """bf16 autocast, or none. On a CPU without bf16 instructions torch emulates them, several times slower than
    fp32.
    """
    if precision == "auto":
        if device.type == "cuda":
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            capabilities = torch.cpu.get_capabilities()
            has_bf16 = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
        precision = "bf16" if has_bf16 else "fp32"
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
