"""Decodes JPEGs for Triton's model decode_jpegs: `python -m serving.embedded.jpeg_process ...`, one per instance.

A separate process, because an image that crashes the library must not crash a process of Triton, which would restart
all models. nvImageCodec decodes, on the GPU with nvJPEG or on the CPU with libjpeg-turbo, and ONNX Runtime resizes, on
the same device. Before it accepts files it checks that its pixels are Pillow's, within DISTANCE_LEVELS.

A request is two messages: JSON with the preprocessing and the sizes of the files, and the files. The response is a byte
for each file, 1 if it was decoded, and a message with the pixels of those that were, uint8 (N, side, side, 3). The
process exits when the socket is closed.
"""

import argparse
import contextlib
import ctypes
import io
import json
import os
import signal
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image, ImageFilter

from deit.allowance import usable_cores
from deit.cuda_provider import CPU, cuda_provider, gpu_session
from deit.errors import ServingError
from deit.pictures import PictureLimits, configure_pillow, read_picture
from deit.plain_jpeg import PlainJpeg, plain_jpeg
from deit.preprocessing import Preprocessing, resize_and_crop
from deit.resize_matrices import ResizeMatrices, resize_matrices

Pixels = npt.NDArray[np.uint8]

GRAPH = Path(__file__).with_name("resize.onnx")

# Decoded, and as floats, a picture of this size takes 0.4 GB of the GPU's memory.
LIMITS = PictureLimits(max_pixels=25_000_000)

# On average, of 255. Without interpolation of the colours, nvJPEG's own default, the proof finds up to 2.9.
DISTANCE_LEVELS = 0.5

# Of nvImageCodec's own kinds; those with a GPU leave the CPU's out, so a GPU that cannot decode a file leaves it.
ON_GPU = ("HW_GPU_ONLY", "GPU_ONLY", "HYBRID_CPU_GPU")

THREADS_ON_GPU = 4
"""For the part of the decoding that nvJPEG does on processors: Huffman's code of progressive files."""

PROVED_WITH = Preprocessing(image_size=224, crop_pct=0.875, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))


class JpegDecoder:
    """nvImageCodec and the graph that resizes, on one device.

    Args:
        on_gpu: on the first that this process sees, else on the CPU.
        interpolates_colours: as Pillow does; off only to show what the proof finds.

    Raises:
        ServingError, GpuUnavailableError: a library is missing, or there is no GPU.
    """

    def __init__(self, *, on_gpu: bool, interpolates_colours: bool = True) -> None:
        os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # a line for each broken file
        try:
            from nvidia import nvimgcodec
        except ImportError as error:
            raise ServingError(f"nvImageCodec cannot be used: {error}; install the extra gpu") from error
        self._codec = nvimgcodec
        self._on_gpu = on_gpu
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        if on_gpu:
            self._session = gpu_session(GRAPH, options, [cuda_provider()])
            # nvImageCodec and ONNX Runtime work on different streams.
            self._wait_for_gpu = ctypes.CDLL("libcudart.so.13").cudaDeviceSynchronize
        else:
            self._session = onnxruntime.InferenceSession(GRAPH, options, providers=[CPU])
        kinds = ON_GPU if on_gpu else ("CPU_ONLY",)
        self._decoder = nvimgcodec.Decoder(
            device_id=0 if on_gpu else nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
            max_num_cpu_threads=min(THREADS_ON_GPU, usable_cores()) if on_gpu else 1,
            backends=[nvimgcodec.Backend(nvimgcodec.BackendKind.__members__[kind]) for kind in kinds],
            options=f":fancy_upsampling={int(interpolates_colours)}",
        )
        self._params = nvimgcodec.DecodeParams(apply_exif_orientation=False)

    def pixels(self, files: Sequence[bytes], preprocessing: Preprocessing) -> list[Pixels | None]:
        """What a model reads of each file, uint8 (side, side, 3); None for one that another decoder must judge."""
        found: list[Pixels | None] = [None] * len(files)
        places, streams, matrices = [], [], []
        for place, content in enumerate(files):
            jpeg = plain_jpeg(content, LIMITS)
            resize = None if jpeg is None else resize_matrices(jpeg.width, jpeg.height, jpeg.orientation, preprocessing)
            stream = None if jpeg is None or resize is None else self._stream(content, jpeg)
            if stream is not None:
                places.append(place)
                streams.append(stream)
                matrices.append(resize)
        images = self._decoder.decode(streams, params=self._params) if streams else []
        if self._on_gpu and self._wait_for_gpu() != 0:
            raise ServingError("the GPU failed while it decoded")
        for place, image, resize in zip(places, images, matrices, strict=True):
            if image is not None:
                assert resize is not None
                found[place] = self._resized(image, resize)
        return found

    def _stream(self, content: bytes, jpeg: PlainJpeg) -> Any:
        with contextlib.suppress(RuntimeError):  # it cannot read the header
            stream = self._codec.CodeStream(content)
            if (stream.width, stream.height, stream.num_channels) == (jpeg.width, jpeg.height, 3):
                return stream
        return None

    def _resized(self, image: Any, matrices: ResizeMatrices) -> Pixels:
        """On the device where the picture is."""
        kind, memory = ("cuda", image.__cuda_array_interface__) if self._on_gpu else ("cpu", image.__array_interface__)
        binding = self._session.io_binding()
        binding.bind_input("picture", kind, 0, np.uint8, image.shape, memory["data"][0])
        for name in ("first", "second", "first_goes_down"):
            binding.bind_cpu_input(name, np.asarray(getattr(matrices, name)))
        binding.bind_output("pixels")
        self._session.run_with_iobinding(binding)
        pixels: Pixels = binding.copy_outputs_to_cpu()[0]
        return np.ascontiguousarray(pixels.transpose(1, 0, 2)) if matrices.is_transposed else pixels


def prove(decoder: JpegDecoder) -> None:
    """Raises ServingError if the pixels of several kinds of plain JPEG differ from Pillow's by more than allowed."""
    files = list(plain_jpegs())
    distances = []
    for content, pixels in zip(files, decoder.pixels(files, PROVED_WITH), strict=True):
        if pixels is None:
            raise ServingError("nvImageCodec does not decode a plain JPEG on this device")
        picture = read_picture(content, LIMITS)
        exact = resize_and_crop(picture.image, PROVED_WITH, exact=True)
        distances.append(float(np.abs(exact.astype(int) - pixels).mean()))
    if max(distances) > DISTANCE_LEVELS:
        raise ServingError(
            f"nvImageCodec's pixels are {max(distances):.2f} levels of 255 away from Pillow's; up to {DISTANCE_LEVELS} "
            "are allowed. Leave the decoding to the gateway"
        )


def plain_jpegs() -> Iterator[bytes]:
    """Colourful pictures with edges, in the kinds that cameras, phones and websites write."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (90, 120, 3), dtype=np.uint8))
    for subsampling in (0, 1, 2):
        for progressive in (False, True):
            picture = coarse.resize((603, 451 + subsampling), Image.Resampling.BICUBIC).filter(ImageFilter.SHARPEN)
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=90, subsampling=subsampling, progressive=progressive)
            yield file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--gpu", type=int, help="number of the GPU, as Triton counts; without it, the CPU")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    configure_pillow()
    if given.gpu is not None:
        show_only_gpu(given.gpu)
    with contextlib.suppress(OSError):  # when memory runs out, the kernel should kill this process, not Triton
        Path("/proc/self/oom_score_adj").write_text("1000")
    with Connection(given.socket) as connection, contextlib.suppress(EOFError):
        try:
            decoder = JpegDecoder(on_gpu=given.gpu is not None)
            prove(decoder)
        except Exception as error:  # the libraries' exceptions share no base class
            connection.send_bytes(f"{type(error).__name__}: {error}".encode())
            return
        connection.send_bytes(b"")  # ready
        while True:
            answer(connection, decoder)


def show_only_gpu(number: int) -> None:
    """nvImageCodec takes memory on the first GPU that a process sees, whichever it decodes on."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = str(number) if visible is None else visible.split(",")[number]


def answer(connection: Connection, decoder: JpegDecoder) -> None:
    asked = json.loads(connection.recv_bytes())
    joined = memoryview(connection.recv_bytes())
    ends = np.cumsum(asked["sizes"]).tolist()
    files = [bytes(joined[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    found = decoder.pixels(files, Preprocessing.from_json(asked["preprocessing"]))
    connection.send_bytes(bytes(each is not None for each in found))
    connection.send_bytes(b"".join(each.data for each in found if each is not None))


if __name__ == "__main__":
    main()
