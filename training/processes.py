"""The processes of one run: one, or those that torchrun started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deit.errors import TrainingError


@dataclass(frozen=True)
class Processes:
    """This process and how many others there are; every method is a no-op in a run with one process."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one writes the run's files."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, exact for integers; `tensor` holds it afterwards."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def union(self, numbers: set[int]) -> set[int]:
        if self.count == 1:
            return numbers
        gathered: list[set[int]] = [set()] * self.count
        dist.all_gather_object(gathered, numbers)
        return set().union(*gathered)

    @torch.no_grad()
    def average_buffers(self, module: nn.Module) -> None:
        """Average a module's statistics over all processes, because each process's batch norm saw other batches."""
        for buffer in module.buffers():
            if self.count > 1 and buffer.is_floating_point():
                buffer.copy_(self.sum(buffer.clone()) / self.count)

    def wait(self) -> None:
        """Return when every process has arrived here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def joined_processes(device: torch.device) -> Iterator[Processes]:
    """Join the processes that torchrun started with this one, if it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def choose_device(name: str) -> torch.device:
    """The device by torch's name; auto is a GPU if there is one. Under torchrun each process takes its own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":  # with its number, for which `torch.cuda.set_device` and timm ask
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"--device {name}: {error}") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The type that autocast computes in; float32 means none.

    On a CPU without bf16 instructions torch emulates them, several times slower than fp32, so auto takes fp32 there.
    """
    if precision == "auto":
        if device.type == "cuda":
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            capabilities = torch.cpu.get_capabilities()
            has_bf16 = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
        precision = "bf16" if has_bf16 else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
