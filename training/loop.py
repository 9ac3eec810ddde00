"""One training run, top to bottom."""

import json
import logging
import math
import time
from contextlib import nullcontext
from typing import Any

import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import DataLoader

from deit.durable import write_file
from deit.errors import TrainingError
from training.choosing import is_best, is_stalled
from training.config import TrainConfig
from training.data import CorruptImages, TrainingBatches, evaluation_batches
from training.evaluate import Evaluation, evaluate_together
from training.events import event_file
from training.features import Features
from training.freezing import to_training
from training.images import LabelledImages
from training.learner import create_learner, teach
from training.model import Normalize
from training.optimizer import clip_gradients, rate_of, update
from training.pixel_bank import BankedBatches, PixelBank, banked
from training.processes import Processes, choose_device, choose_precision, joined_processes
from training.profile import StepProfile
from training.provenance import provenance
from training.resume import ResumeState, prepare_run_folder, stop_request
from training.sampler import share_out
from training.saving import flat_numbers, save_as, save_checkpoints
from training.schedule import learning_rate_schedule
from training.seeds import Purpose, derived_seed, seed_everything
from training.splits import open_splits
from training.start_log import log_start
from training.step_log import StepLog
from training.summary import write_summary
from training.teacher_cache import open_cache

logger = logging.getLogger(__name__)

EVALUATION_BATCH = 256


def train(config: TrainConfig) -> None:
    """Run the training of `config`, which ends with a checkpoint folder; under torchrun, as one of its processes."""
    device = choose_device(config.device)
    with joined_processes(device) as processes:
        if not processes.is_first:
            logger.setLevel(logging.WARNING)
        _train(config, device, processes)


def _train(config: TrainConfig, device: torch.device, processes: Processes) -> None:
    splits = open_splits(config)
    shares = share_out(config, processes)
    steps_per_epoch = len(splits.train) // config.batch_size
    cache = open_cache(
        config,
        splits.train,
        shares=shares,
        processes=processes,
        device=device,
        precision=choose_precision(config.precision, device),
    )
    asks_teacher = cache is None or cache.lacks(range(config.epochs))
    if not asks_teacher:
        logger.info("the teacher's outputs are read from %s; the teacher is not loaded", config.teacher_cache)
    seed_everything(config.seed)
    learner = create_learner(
        config,
        label_names=splits.label_names,
        preprocessing=splits.preprocessing,
        device=device,
        asks_teacher=asks_teacher,
    )
    model, teacher, objective, optimizer = learner.model, learner.teacher, learner.objective, learner.optimizer
    set_learning_rate = learning_rate_schedule(optimizer, config, steps_per_epoch)
    origin = provenance(splits.by_name(), teacher=config.teacher)
    state = prepare_run_folder(config, processes, origin)
    if state.weights is not None:
        learner.restore(state.weights)
        rate_before = rate_of(optimizer)
        set_learning_rate(state.epochs_done, state.steps_done)
        logger.info(
            "resuming %s after %d of %d epochs and %d steps; the learning rate was %.3g and continues at %.3g",
            *(config.folder, state.epochs_done, config.epochs, state.steps_done),
            *(rate_before, rate_of(optimizer)),
        )
    learner.prepare(compiles=config.compile, processes=processes, device=device)
    log_start(config, learner, splits, shares, device)

    # ------------------------------------------------------------------------------------------------------ batches
    training_batches: TrainingBatches | BankedBatches
    if config.pixel_bank:
        training_batches = BankedBatches(PixelBank(splits.train, device, workers=config.workers), config, shares)
    else:
        training_batches = TrainingBatches(splits.train, config, shares, mean=splits.preprocessing.mean)

    def batches_to_judge(images: LabelledImages) -> DataLoader[tuple[Tensor, Tensor, Tensor]]:
        return evaluation_batches(
            images, splits.preprocessing, batch_size=EVALUATION_BATCH, workers=config.workers, processes=processes
        )

    judged_batches = batches_to_judge(splits.judged)
    judged_bank = banked(judged_batches, device) if config.pixel_bank else None
    normalize = Normalize(splits.preprocessing).to(device)
    erase = RandomErasing(config.random_erasing, mode="pixel", device=device)
    mix = mixing(config, num_classes=len(splits.label_names))

    def evaluate_reported(images: LabelledImages) -> dict[str, Evaluation]:
        return evaluate_together(
            learner.evaluated(),
            batches_to_judge(images),
            normalize,
            device,
            corrupt=CorruptImages(images, config.max_corrupt_share),
            processes=processes,
        )

    def to_device(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return images.to(device, non_blocking=True), targets.to(device, non_blocking=True)

    def augment_on_device(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        images = erase(normalize(images).contiguous(memory_format=learner.memory_format))
        return (images, targets) if mix is None else mix(images, targets)  # DeiT erases before it mixes

    # ---------------------------------------------------------------------------- the parts that --profile measures
    profile = StepProfile(device, config.profile)
    next_batch = profile.timed("data", next)
    transfer = profile.timed("transfer", to_device)
    augment = profile.timed("augmentation", augment_on_device)
    ask = profile.timed("teacher", teach)
    forward = profile.timed("student", learner.step_of)
    backward = profile.timed("backward", Tensor.backward)
    clip = profile.timed("optimiser", clip_gradients)
    update_weights = profile.timed("optimiser", update)

    def learn(step: int, turn: int, images: Tensor) -> tuple[Tensor] | tuple[Tensor, Features] | tuple[()]:
        kept = None if cache is None else cache.recall(step, turn)
        if kept is not None:
            return (kept,)
        if teacher is None:
            return ()
        lesson = ask(teacher, images, objective.features)
        return lesson if cache is None else (cache.keep(step, turn, lesson[0]),)

    update_average = None if learner.ema is None else profile.timed("average", learner.ema.update)

    # ------------------------------------------------------------------------------------------------------- epochs
    first_step, saved_epoch = state.epochs_done * steps_per_epoch + state.steps_done, state.epochs_done
    events_of_run = event_file(
        config.folder / "tensorboard",
        first_step=first_step,
        steps_per_epoch=steps_per_epoch,
        enabled=processes.is_first,
    )
    with stop_request() as stop_asked, events_of_run as events:
        log = StepLog(config, events, steps_per_epoch=steps_per_epoch, device=device, is_shown=processes.is_first)
        for epoch in range(state.epochs_done, config.epochs):
            # an epoch in progress is finished first: its weights are not those of the last line of metrics
            if state.steps_done == 0 and is_stalled(state.metrics, splits.judged_by, config.patience):
                logger.info("the last %d epochs did not improve, so the run stops (--patience)", config.patience)
                if splits.reported is not None and not any(key.startswith("test_") for key in state.metrics[-1]):
                    # it was killed before this point, and resumed with less patience
                    result = {"test": evaluate_reported(splits.reported)}
                    state.metrics[-1].update(flat_numbers(result))
                    if processes.is_first:
                        save_checkpoints(config, learner, splits, result, state.epochs_done)
                        state.save(config)
                        write_file(config.folder / "metrics.jsonl", as_lines(state.metrics))
                break
            to_training(model)
            started, first_step = time.monotonic(), state.steps_done
            corrupt = CorruptImages(splits.train, config.max_corrupt_share)
            corrupt.add(state.corrupt)
            if cache is not None:
                cache.begin(epoch, first_step, state.answers if state.answers_key == cache.key else None)
            batches = training_batches.epoch(epoch, first_step=first_step)
            with log.epoch(epoch, state, saved_epoch=saved_epoch) as note:
                for step in profile.each(range(first_step, steps_per_epoch)):
                    set_learning_rate(epoch, step)
                    optimizer.zero_grad()
                    loss_sum = torch.zeros((), device=device)
                    for turn in range(shares.accumulation):
                        images, targets, undecodable = next_batch(batches)
                        corrupt.add(undecodable[undecodable >= 0].tolist())
                        seed_everything(derived_seed(config.seed, epoch, Purpose.BATCH, step, shares.part(turn)))
                        images, targets = augment(*transfer(images, targets))
                        gradients_wait = processes.count > 1 and turn + 1 < shares.accumulation
                        with learner.step_of.no_sync() if gradients_wait else nullcontext():  # type: ignore[operator]
                            with learner.autocast():
                                lesson = learn(step, turn, images)
                                loss = forward(images, targets, *lesson) / shares.accumulation
                            backward(learner.scaler.scale(loss))
                        loss_sum += loss.detach()
                    norm = clip(optimizer, learner.scaler, objective.parameters(), config.clip_grad_norm or math.inf)
                    # every process learns the same numbers, so all skip or stop at the same step
                    asked = torch.full((), float(stop_asked()), device=device)
                    numbers = processes.sum(torch.stack([loss_sum, norm, asked])) / processes.count
                    if update_weights(optimizer, learner.scaler, numbers) and update_average is not None:
                        update_average(model, step=epoch * steps_per_epoch + step + 1)
                    if note(step, rate_of(optimizer), numbers):
                        learner.average_buffers(processes)
                        state.steps_done, state.weights = step + 1, learner.weights()
                        state.corrupt = sorted(processes.union(corrupt.indices))
                        kept = (None, None) if cache is None else (cache.collected(), cache.key)
                        state.answers, state.answers_key = kept
                        if processes.is_first:
                            state.save(config)
                        raise TrainingError(
                            f"stopped after step {step + 1} of epoch {epoch + 1}: --resume continues from there"
                        )
            train_s = time.monotonic() - started
            if cache is not None:
                cache.finish()
            corrupt.add(processes.union(corrupt.indices))
            if config.profile:
                logger.info("%s", profile.text(config.batch_size))

            is_saved = (epoch + 1) % config.evaluate_every == 0 or epoch + 1 == config.epochs
            evaluations: dict[str, dict[str, Evaluation]] = {}  # by split, then by model
            if is_saved:
                learner.average_buffers(processes)
                evaluations[splits.judged_by] = evaluate_together(
                    learner.evaluated(),
                    judged_batches if judged_bank is None else judged_bank,
                    normalize,
                    device,
                    corrupt=CorruptImages(splits.judged, config.max_corrupt_share),
                    processes=processes,
                )
            judged = {"epoch": epoch + 1, **flat_numbers(evaluations)}
            is_over = epoch + 1 == config.epochs or is_stalled(
                [*state.metrics, judged], splits.judged_by, config.patience
            )
            if splits.reported is not None and is_over:
                evaluations["test"] = evaluate_reported(splits.reported)
            record = {
                "epoch": epoch + 1,
                "loss": round(state.loss_sum / max(steps_per_epoch - state.skipped_steps, 1), 5),
                "learning_rate": float(f"{rate_of(optimizer):.6g}"),
                "skipped_steps": state.skipped_steps,
                "corrupt_images": len(corrupt.indices),
                "train_images_per_s": round((steps_per_epoch - first_step) * config.batch_size / train_s, 1),
                "train_s": round(train_s, 1),
                **flat_numbers(evaluations),
            }
            logger.info("epoch %d/%d %s", epoch + 1, config.epochs, json.dumps(record))
            state = ResumeState(epochs_done=epoch + 1, metrics=[*state.metrics, record])
            if is_saved:
                saved_epoch, state.weights = epoch + 1, learner.weights()
            if processes.is_first:
                # checkpoints first: if the run dies in between, --resume repeats the epoch and writes the same again
                save_checkpoints(config, learner, splits, evaluations, epoch + 1)
                if config.keep_best and is_best(state.metrics, splits.judged_by):
                    save_as(config, learner, splits, "checkpoint-best", "", splits.judged_by, evaluations, epoch + 1)
                if is_saved:
                    state.save(config)
                write_file(config.folder / "metrics.jsonl", as_lines(state.metrics))
                events.epoch(record)
                if config.profile:
                    write_file(config.folder / "profile.json", json.dumps(profile.steps, indent=2) + "\n")
    if config.report and processes.is_first:
        logger.info("wrote %s, a report of the run", write_summary(config.folder))
    logger.info("%s is done; `deit export --checkpoint %s` publishes it", config.folder, config.folder / "checkpoint")


def as_lines(metrics: list[dict[str, Any]]) -> str:
    """The content of metrics.jsonl."""
    return "".join(json.dumps(line) + "\n" for line in metrics)


def mixing(config: TrainConfig, *, num_classes: int) -> Mixup | None:
    if not config.mixes:
        return None
    return Mixup(
        mixup_alpha=config.mixup_alpha,
        cutmix_alpha=config.cutmix_alpha,
        prob=config.mixing_probability,
        label_smoothing=config.label_smoothing,
        num_classes=num_classes,
    )
