"""One training run, top to bottom."""

import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from timm.data import Mixup
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deit.durable import write_file
from deit.errors import TrainingError
from deit.preprocessing import Preprocessing
from training.checkpoint import save_checkpoint
from training.config import TrainConfig
from training.data import CorruptImages, TrainingBatches, evaluation_batches
from training.distillation import DistillationLoss, Objective, check_architecture
from training.evaluate import evaluate_together
from training.events import event_file
from training.features import Features, ViTKD
from training.images import SomeImages, open_images
from training.initial import load_initial
from training.model import Normalize, Teacher, choose_attention, create_model, load_teacher
from training.optimizer import create_optimizer, read_later, restore_optimizer, update
from training.pixel_bank import BankedBatches, PixelBank, banked
from training.preset import read_preset
from training.processes import Processes, choose_device, choose_precision, joined_processes
from training.profile import StepProfile
from training.provenance import provenance
from training.resume import ResumeState, prepare_run_folder, stop_request
from training.sampler import Shares
from training.schedule import learning_rate_schedule
from training.seeds import Purpose, derived_seed, seed_everything
from training.summary import write_summary

logger = logging.getLogger(__name__)

SKIPPED_STEPS_LIMIT = 20
"""Steps in a row whose loss or gradient is no number. Fewer are skipped: fp16 meets some while its scale settles."""

EVALUATION_BATCH = 256


def train(config: TrainConfig) -> None:
    """Train what `config` asks for and leave a checkpoint folder; under torchrun, as one of its processes."""
    device = choose_device(config.device)
    with joined_processes(device) as processes:
        if not processes.is_first:
            logger.setLevel(logging.WARNING)
        _train(config, device, processes)


def _train(config: TrainConfig, device: torch.device, processes: Processes) -> None:
    # ---------------------------------------------------------------------------------------------------------- data
    train_images, test_images = open_images(config.data, "train"), open_images(config.data, "test")
    if test_images.label_names != train_images.label_names:
        raise TrainingError(f"{config.data}: train and test name different classes")
    if config.train_images is not None:
        train_images = SomeImages(train_images, config.train_images)
    if len(train_images) < config.batch_size:
        raise TrainingError(
            f"{config.data} has {len(train_images)} training images, fewer than one batch of {config.batch_size}: "
            "lower --batch-size"
        )
    shares = share_out(config, processes)
    steps_per_epoch = len(train_images) // config.batch_size
    label_names = train_images.label_names
    preprocessing = Preprocessing(
        image_size=config.image_size,
        crop_pct=config.crop_pct,
        interpolation="bicubic",
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )

    # ------------------------------------------------------------------------------------------- student and teacher
    seed_everything(config.seed)
    model = create_model(
        config.model,
        num_classes=len(label_names),
        image_size=config.image_size,
        drop_path=config.drop_path,
        model_args=config.model_args,
    )
    check_architecture(config.model, model, config.distillation, config.token)
    if config.initial_checkpoint is not None:
        changes = load_initial(
            model, config.initial_checkpoint, label_names=label_names, antialias=config.position_antialias
        )
        logger.info("starting from %s", config.initial_checkpoint)
        for change in changes:
            logger.info("%s", change)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    teacher = None
    if config.teacher is not None:
        teacher = load_teacher(
            config.teacher,
            label_names=label_names,
            student=preprocessing,
            image_size=config.teacher_image_size,
        )
        teacher = teacher.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    objective = Objective(model, loss_of(config), features_of(config, model, teacher)).to(device)

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

    # --------------------------------------------------------------------------------- optimiser, average, precision
    optimizer = create_optimizer(objective, config, device)
    set_learning_rate = learning_rate_schedule(optimizer, config, steps_per_epoch)
    # The average warms up: with DeiT's fixed 0.99996 a run of 6,000 steps would still be 79 % random initial weights.
    ema = None if config.ema_decay is None else ModelEmaV3(model, decay=config.ema_decay, use_warmup=True)
    precision = choose_precision(config.precision, device)
    choose_attention(model, device, precision)
    autocast = torch.autocast(device.type, precision, enabled=precision != torch.float32)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)

    # -------------------------------------------------------------------------------------------------- start or resume
    state = prepare_run_folder(config, processes, provenance({"train": train_images, "test": test_images}))
    if state.weights is not None:
        model.load_state_dict(state.weights["model"])
        if objective.features is not None:
            objective.features.load_state_dict(state.weights["features"])
        restore_optimizer(optimizer, state.weights["optimizer"])
        scaler.load_state_dict(state.weights["scaler"])
        if ema is not None:
            ema.module.load_state_dict(state.weights["ema"])
        logger.info("resuming %s after %d epochs and %d steps", config.folder, state.epochs_done, state.steps_done)
    step_of: nn.Module = objective
    if config.compile:
        objective.compile()
        if teacher is not None:
            teacher.compile()
    if processes.count > 1:
        step_of = DistributedDataParallel(objective, device_ids=[device.index] if device.type == "cuda" else None)
    logger.info(
        "%s: %.2f M parameters on %s in %s; %d training images, %d classes; teacher %s",
        config.model,
        sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        device,
        precision,
        len(train_images),
        len(label_names),
        config.teacher,
    )
    logger.info(
        "a step: %d images = %d on a device x %d processes x %d in turn; %d steps an epoch, %d epochs",
        config.batch_size,
        config.batch_size // shares.parts,
        shares.processes,
        shares.accumulation,
        steps_per_epoch,
        config.epochs,
    )
    logger.info(
        "peak learning rate %g for the whole batch, used as it is; DeiT's code takes --lr %g and scales it by %d/512",
        config.learning_rate,
        config.learning_rate * 512 / config.batch_size,
        config.batch_size,
    )
    if config.preset is not None:
        recipe = read_preset(config.preset)
        for_batch = recipe.get("batch_size", config.batch_size)
        if config.batch_size != for_batch and config.learning_rate == recipe.get("learning_rate"):
            logger.warning(
                "learning rate %g is for the preset's batch of %d; DeiT's rule gives %g for %d",
                *(config.learning_rate, for_batch),
                *(config.learning_rate * config.batch_size / for_batch, config.batch_size),
            )

    # -------------------------------------------------------------------------------------------------------- epochs
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    skipped_in_a_row = 0
    unread: deque[tuple[int, float, Callable[[], list[float]]]] = deque()  # steps whose numbers the host has not read
    steps_late = 1 if device.type == "cuda" else 0  # it computes a step while the host queues the next
    saved_epoch = state.epochs_done
    training_batches: TrainingBatches | BankedBatches
    if config.pixel_bank:
        training_batches = BankedBatches(PixelBank(train_images, device, workers=config.workers), config, shares)
    else:
        training_batches = TrainingBatches(train_images, config, shares, mean=preprocessing.mean)
    test_batches = evaluation_batches(
        test_images, preprocessing, batch_size=EVALUATION_BATCH, workers=config.workers, processes=processes
    )
    test_bank = banked(test_batches, device) if config.pixel_bank else None
    events_of_run = event_file(
        config.folder / "tensorboard",
        first_step=state.epochs_done * steps_per_epoch + state.steps_done,
        steps_per_epoch=steps_per_epoch,
        enabled=processes.is_first,
    )
    with stop_request() as stop_asked, events_of_run as events:
        for epoch in range(state.epochs_done, config.epochs):
            model.train()
            started, first_step = time.monotonic(), state.steps_done
            profile = StepProfile(device, config.profile)
            corrupt = CorruptImages(train_images, config.max_corrupt_share)
            corrupt.add(state.corrupt)
            batches = training_batches.epoch(epoch, first_step=first_step)
            with Progress(*columns, transient=True, disable=not processes.is_first) as progress:
                bar = progress.add_task("", total=steps_per_epoch, completed=first_step)
                for step in range(first_step, steps_per_epoch):
                    profile.start_step()
                    set_learning_rate(epoch, step)
                    optimizer.zero_grad()
                    loss_sum = torch.zeros((), device=device)
                    for turn in range(shares.accumulation):
                        profile.end("rest")
                        images, targets, undecodable = next(batches)
                        profile.end("data")
                        corrupt.add(undecodable[undecodable >= 0].tolist())
                        seed_everything(derived_seed(config.seed, epoch, Purpose.BATCH, step, shares.part(turn)))
                        images = images.to(device, non_blocking=True)
                        targets = targets.to(device, non_blocking=True)
                        profile.end("transfer")
                        images = normalize(images).contiguous(memory_format=memory_format)
                        images = erase(images)  # DeiT erases before it mixes
                        if mix is not None:
                            images, targets = mix(images, targets)
                        profile.end("augmentation")
                        gradients_wait = processes.count > 1 and turn + 1 < shares.accumulation
                        with step_of.no_sync() if gradients_wait else nullcontext():  # type: ignore[operator]
                            with autocast:
                                lesson = () if teacher is None else teach(teacher, images, objective.features)
                                profile.end("teacher")
                                loss = step_of(images, targets, *lesson) / shares.accumulation
                            profile.end("student")
                            scaler.scale(loss).backward()
                        loss_sum += loss.detach()
                        profile.end("backward")

                    scaler.unscale_(optimizer)
                    norm = nn.utils.clip_grad_norm_(objective.parameters(), config.clip_grad_norm or math.inf)
                    # every process learns the same numbers, so all skip or stop at the same step
                    asked = torch.full((), float(stop_asked()), device=device)
                    shared = processes.sum(torch.stack([loss_sum, norm, asked])) / processes.count
                    moved = update(optimizer, scaler, shared)
                    profile.end("optimiser")
                    if ema is not None and moved:
                        ema.update(model, step=epoch * steps_per_epoch + step + 1)
                        profile.end("average")
                    unread.append((step, optimizer.param_groups[0]["lr"], read_later(shared)))
                    stop, is_last = False, step + 1 == steps_per_epoch
                    while len(unread) > (0 if stop or is_last else steps_late):
                        of_step, rate, read = unread.popleft()
                        step_loss, step_norm, stop_share = read()
                        stop = stop or stop_share > 0
                        if math.isfinite(step_loss) and math.isfinite(step_norm):
                            skipped_in_a_row = 0
                            state.loss_sum += step_loss
                        else:
                            skipped_in_a_row += 1
                            state.skipped_steps += 1
                            logger.warning(
                                "step %d of epoch %d is skipped: loss %g, gradient norm %g",
                                *(of_step, epoch + 1, step_loss, step_norm),
                            )
                        if skipped_in_a_row == SKIPPED_STEPS_LIMIT:
                            raise TrainingError(
                                f"the loss or its gradient was no number for {SKIPPED_STEPS_LIMIT} steps in a row, "
                                f"until step {of_step} of epoch {epoch + 1}. {config.folder} keeps the state after "
                                f"epoch {saved_epoch}: start again from its checkpoint with --initial-checkpoint and "
                                "a lower --learning-rate"
                            )
                        events.step(
                            epoch * steps_per_epoch + of_step,
                            {"loss": step_loss, "gradient_norm": step_norm, "learning_rate": rate},
                        )
                        images_per_s = (progress.tasks[bar].speed or 0) * config.batch_size
                        progress.update(
                            bar,
                            advance=1,
                            description=f"epoch {epoch + 1} loss {step_loss:.3f}, {images_per_s:.0f} images/s",
                        )
                    profile.end("rest")
                    if stop:
                        state.steps_done = step + 1
                        state.corrupt = sorted(processes.union(corrupt.indices))
                        state.weights = weights_of(objective, optimizer, scaler, ema)
                        if processes.is_first:
                            state.save(config)
                        raise TrainingError(
                            f"stopped by SIGTERM after step {step} of epoch {epoch + 1}: --resume goes on from there"
                        )
            train_s = time.monotonic() - started
            corrupt.add(processes.union(corrupt.indices))
            if config.profile:
                logger.info("%s", profile.text(config.batch_size))

            # ------------------------------------------------------------------------------ evaluation and checkpoints
            is_saved = (epoch + 1) % config.evaluate_every == 0 or epoch + 1 == config.epochs
            evaluated = {"test": model} if ema is None else {"test": model, "test_ema": ema.module}
            evaluations = {}
            if is_saved:
                evaluations = evaluate_together(
                    evaluated,
                    test_batches if test_bank is None else test_bank,
                    normalize,
                    device,
                    corrupt=CorruptImages(test_images, config.max_corrupt_share),
                    processes=processes,
                )
            record = {
                "epoch": epoch + 1,
                "loss": round(state.loss_sum / max(steps_per_epoch - state.skipped_steps, 1), 5),
                "learning_rate": optimizer.param_groups[0]["lr"],
                "skipped_steps": state.skipped_steps,
                "corrupt_images": len(corrupt.indices),
                "train_images_per_s": round((steps_per_epoch - first_step) * config.batch_size / train_s, 1),
                "train_s": round(train_s, 1),
                **{
                    f"{name}_{key}": round(value, 5)
                    for name, evaluation in evaluations.items()
                    for key, value in evaluation.accuracy.items()
                },
            }
            logger.info("epoch %d/%d %s", epoch + 1, config.epochs, json.dumps(record))
            state = ResumeState(epochs_done=epoch + 1, metrics=[*state.metrics, record])
            if is_saved:
                saved_epoch, state.weights = epoch + 1, weights_of(objective, optimizer, scaler, ema)
            if processes.is_first:
                # checkpoints first: if the run dies in between, --resume repeats the epoch and writes the same again
                for name, evaluation in evaluations.items():
                    save_checkpoint(
                        config.folder / ("checkpoint" if name == "test" else "checkpoint-ema"),
                        evaluated[name],
                        label_names=label_names,
                        preprocessing=preprocessing,
                        deit={
                            "recipe": config.settings,
                            "teacher": config.teacher,
                            "distillation": config.distillation,
                            "epoch": epoch + 1,
                            "metrics": evaluation.accuracy,
                        },
                    )
                if is_saved:
                    state.save(config)
                write_file(config.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in state.metrics))
                events.epoch(record)
                if config.profile:
                    write_file(config.folder / "profile.json", json.dumps(profile.steps, indent=2) + "\n")
    if config.report and processes.is_first:
        logger.info("%s tells how the run went", write_summary(config.folder))
    logger.info("%s is done; `deit export --checkpoint %s` publishes it", config.folder, config.folder / "checkpoint")


def share_out(config: TrainConfig, processes: Processes) -> Shares:
    """How the processes share a step's batch. Raises TrainingError when it cannot be shared equally."""
    device_batch = config.device_batch_size or config.batch_size // processes.count
    accumulation, rest = divmod(config.batch_size, device_batch * processes.count)
    if rest or not accumulation:
        raise TrainingError(
            f"--batch-size {config.batch_size} cannot be shared by {processes.count} processes with {device_batch} "
            "images at a time: choose a multiple, or another --device-batch-size"
        )
    if config.mixes and device_batch % 2:
        raise TrainingError(
            f"each of {processes.count} processes would take {device_batch} images, but mixup pairs them: choose an "
            "even --device-batch-size"
        )
    return Shares(
        batch_size=config.batch_size, processes=processes.count, rank=processes.rank, accumulation=accumulation
    )


def loss_of(config: TrainConfig) -> DistillationLoss:
    """The loss on logits that the run asks for."""
    return DistillationLoss(
        distillation=config.distillation,
        label_weight=config.label_weight,
        temperature=config.temperature,
        kl_reduction=config.kl_reduction,
        nkd_gamma=config.nkd_gamma,
        nkd_temperature=config.nkd_temperature,
        label_smoothing=config.label_smoothing,
    )


def features_of(config: TrainConfig, student: nn.Module, teacher: Teacher | None) -> ViTKD | None:
    """The loss on features that the run asks for, if it does."""
    if config.features == "none":
        return None
    assert teacher is not None  # TrainConfig asks for one
    mimic_weight, generate_weight = config.vitkd_weights
    return ViTKD(
        student,
        teacher.model,
        mimic=config.vitkd_mimic_blocks,
        generate=config.vitkd_generate_blocks,
        point=config.vitkd_point,
        mask_ratio=config.vitkd_mask_ratio,
        reduction=config.vitkd_reduction,
        mimic_weight=mimic_weight,
        generate_weight=generate_weight,
    )


def teach(teacher: Teacher, images: Tensor, features: ViTKD | None) -> tuple[Tensor] | tuple[Tensor, Features]:
    """The teacher's logits, and its features where they are asked for."""
    return (teacher(images),) if features is None else teacher.with_features(images, features.taps)


def weights_of(
    objective: Objective, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, ema: ModelEmaV3 | None
) -> dict[str, dict[str, object]]:
    """All that training has changed, for the resume file."""
    weights = {
        "model": objective.student.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
    }
    if objective.features is not None:
        weights["features"] = objective.features.state_dict()
    return weights if ema is None else {**weights, "ema": ema.module.state_dict()}
