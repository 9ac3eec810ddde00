"""The student of a run and what trains it: teacher, losses, optimiser, average of the weights, precision."""

import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deit.preprocessing import Preprocessing
from training.config import TrainConfig
from training.distillation import DistillationLoss, Objective, check_architecture
from training.features import Features, ViTKD
from training.freezing import freeze
from training.initial import load_initial
from training.model import Teacher, choose_attention, create_model, load_teacher
from training.optimizer import create_optimizer, restore_optimizer
from training.processes import Processes, choose_precision
from training.weight_average import WeightAverage

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Learner:
    """The state that the steps change or read.

    Attributes:
        objective: the student and its losses in one forward.
        step_of: the objective, compiled or spread over processes if requested.
        scaler: of fp16's gradients; does nothing in other precisions.
        ema: the moving average of the student's weights, if one is kept.
    """

    model: nn.Module
    teacher: Teacher | None
    objective: Objective
    step_of: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: WeightAverage | None
    precision: torch.dtype
    memory_format: torch.memory_format

    def autocast(self) -> AbstractContextManager[Any]:
        device = next(self.model.parameters()).device
        return torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32)

    def evaluated(self) -> dict[str, nn.Module]:
        """The models that are evaluated, by the part of their metrics' names that follows the split."""
        return {"": self.model} if self.ema is None else {"": self.model, "_ema": self.ema.module}

    def average_buffers(self, processes: Processes) -> None:
        """Give each model the mean of all processes' statistics: before it is evaluated or saved."""
        for model in self.evaluated().values():
            processes.average_buffers(model)

    def weights(self) -> dict[str, dict[str, object]]:
        """Everything that training has changed, for the resume file."""
        weights = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        if self.objective.features is not None:
            weights["features"] = self.objective.features.state_dict()
        return weights if self.ema is None else {**weights, "ema": self.ema.module.state_dict()}

    def restore(self, weights: dict[str, dict[str, Any]]) -> None:
        """Load what `weights` returned."""
        self.model.load_state_dict(weights["model"])
        if self.objective.features is not None:
            self.objective.features.load_state_dict(weights["features"])
        restore_optimizer(self.optimizer, weights["optimizer"])
        self.scaler.load_state_dict(weights["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(weights["ema"])

    def prepare(self, *, compiles: bool, processes: Processes, device: torch.device) -> None:
        """Compile, and join the other processes: after restoring, because both read the weights."""
        if compiles:
            self.objective.compile()
            if self.teacher is not None:
                self.teacher.compile()
        if processes.count > 1:
            devices = [device.index] if device.type == "cuda" else None
            # each process keeps its own statistics, and `average_buffers` mixes those of all steps, not of the last
            self.step_of = DistributedDataParallel(self.objective, device_ids=devices, broadcast_buffers=False)


def create_learner(
    config: TrainConfig,
    *,
    label_names: tuple[str, ...],
    preprocessing: Preprocessing,
    device: torch.device,
    asks_teacher: bool = True,
) -> Learner:
    """The student as the run starts it, with its teacher if the run needs it.

    Raises:
        TrainingError, CheckpointError: the student, the teacher or the initial checkpoint does not fit.
    """
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
    if config.freeze_blocks is not None:
        logger.info("%s", freeze(model, config.freeze_blocks))
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    teacher = None
    if config.teacher is not None and asks_teacher:
        teacher = load_teacher(
            config.teacher,
            label_names=label_names,
            student=preprocessing,
            image_size=config.teacher_image_size,
        )
        teacher = teacher.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    objective = Objective(model, loss_of(config), features_of(config, model, teacher)).to(device)
    # The average warms up: with DeiT's fixed 0.99996 a run of 6,000 steps would still be 79 % random initial weights.
    ema = None if config.ema_decay is None else WeightAverage(model, decay=config.ema_decay)
    precision = choose_precision(config.precision, device)
    choose_attention(model, device, precision)
    return Learner(
        model=model,
        teacher=teacher,
        objective=objective,
        step_of=objective,
        optimizer=create_optimizer(objective, config, device),
        scaler=torch.amp.GradScaler(device.type, enabled=precision == torch.float16),
        ema=ema,
        precision=precision,
        memory_format=memory_format,
    )


def loss_of(config: TrainConfig) -> DistillationLoss:
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
    """The loss on features, if the run has one."""
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
    """The teacher's logits, and its features if needed."""
    return (teacher(images),) if features is None else teacher.with_features(images, features.taps)
