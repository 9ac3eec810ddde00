"""Runs a plan on the GPU, to judge it. torch allocates the memory, so no other CUDA library is needed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.errors import RepositoryError
from deit.model import IMAGES


def load_plan(
    tensorrt: Any, plan: Path, outputs: tuple[str, ...]
) -> Callable[[npt.NDArray[np.uint8]], list[npt.NDArray[np.float32]]]:
    """Runs the plan on uint8 images (N, H, W, 3); `outputs` are all that it has.

    Raises:
        RepositoryError: TensorRT does not load the plan.
    """
    import torch

    engine = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING)).deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise RepositoryError(
            f"TensorRT {tensorrt.__version__} does not load {plan}: a plan runs on the TensorRT and the GPU that built "
            "it; build it again here"
        )
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    contexts: list[tuple[int, int, Any]] = []  # smallest and largest batch of each profile
    for profile in range(engine.num_optimization_profiles):
        context = engine.create_execution_context()
        context.set_optimization_profile_async(profile, stream.cuda_stream)
        smallest, _, largest = engine.get_tensor_profile_shape(IMAGES, profile)
        contexts.append((smallest[0], largest[0], context))
    stream.synchronize()

    def run(images: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
        context = next((each for low, high, each in contexts if low <= len(images) <= high), None)
        if context is None:
            raise RepositoryError(f"{plan} was not built for a batch of {len(images)}")
        pixels = torch.from_numpy(np.ascontiguousarray(images)).cuda()
        context.set_input_shape(IMAGES, tuple(pixels.shape))
        context.set_tensor_address(IMAGES, pixels.data_ptr())
        results = [torch.empty(tuple(context.get_tensor_shape(name)), device="cuda") for name in outputs]
        for name, result in zip(outputs, results, strict=True):
            context.set_tensor_address(name, result.data_ptr())
        stream.wait_stream(torch.cuda.current_stream())
        if not context.execute_async_v3(stream.cuda_stream):
            raise RepositoryError(f"TensorRT cannot run {plan} on a batch of {len(images)}")
        stream.synchronize()
        return [result.cpu().numpy() for result in results]

    return run
