"""What is trained on, evaluated, exported on, classified in bulk and served: the same pixels, whatever the file is."""

import asyncio
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import ExifTags, Image, ImageCms

from bulk.model import StoredModel
from bulk.sources import find_parts
from bulk.steps import Work
from bulk.steps import decode as decode_part
from deit.errors import DataError
from deit.pictures import UPRIGHT
from deit.preprocessing import Preprocessing, resize_and_crop
from export.samples import load_samples
from serving.gateway.decoder import Decoder
from serving.gateway.errors import UnsupportedType
from serving.settings.decoding import Decoding
from serving.settings.limits import Limits
from tests.conftest import encoded
from training.data import AugmentedImages, evaluation_batches
from training.images import LabelledImages, decode, open_images
from training.sampler import Draw

Pixels = npt.NDArray[np.uint8]

PREPROCESSING = Preprocessing(
    image_size=96, crop_pct=0.875, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)
# A real photograph that an installed package brings, higher than wide
PHOTOGRAPH = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").resize((213, 251))
FADING = Image.linear_gradient("L").resize(PHOTOGRAPH.size)

YCCK = 2  # the colour transform, last byte of the Adobe segment


def with_alpha(mode: str) -> Image.Image:
    image = PHOTOGRAPH.convert("RGB" if mode == "RGBA" else "L")
    image.putalpha(FADING)
    return image


def turned(orientation: int, image_format: str, **options: object) -> bytes:
    """Stored so that EXIF has to turn it upright."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    backwards = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = PHOTOGRAPH
    if orientation != 1:
        stored = PHOTOGRAPH.transpose(backwards.get(orientation, UPRIGHT[orientation]))
    return encoded(stored, image_format, exif=exif, **options)


def jpeg_in_ycck() -> bytes:
    content = encoded(PHOTOGRAPH.convert("CMYK"), "JPEG")
    at = content.index(b"\xff\xee") + 4 + 11  # marker, length, "Adobe", version and flags
    return content[:at] + bytes([YCCK]) + content[at + 1 :]


def deep(channels: int) -> npt.NDArray[np.uint16]:
    """16 bits a channel, (H, W, channels); the lower byte is another than the higher."""
    levels = np.asarray(with_alpha("RGBA") if channels == 4 else PHOTOGRAPH).astype(np.uint16)
    return (levels * 256 + 255 - levels)[..., :channels]


def deep_png(channels: int) -> bytes:
    """A PNG that Pillow reads but does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    levels = deep(channels)
    height, width, _ = levels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(name, data) for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def animated(image_format: str, **options: object) -> bytes:
    others = [PHOTOGRAPH.convert("L").convert("RGB"), Image.new("RGB", PHOTOGRAPH.size, "red")]
    return encoded(PHOTOGRAPH, image_format, save_all=True, append_images=others, **options)


INDEXED = PHOTOGRAPH.quantize(64)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'

# kind -> how it opens in Pillow, which shows that it is what it says, and the file
SERVED: dict[str, tuple[str, str, Callable[[], bytes]]] = {
    "jpeg": ("JPEG", "RGB", lambda: encoded(PHOTOGRAPH)),
    "jpeg progressive": ("JPEG", "RGB", lambda: encoded(PHOTOGRAPH, progressive=True)),
    "jpeg grey": ("JPEG", "L", lambda: encoded(PHOTOGRAPH.convert("L"))),
    "jpeg CMYK": ("JPEG", "CMYK", lambda: encoded(PHOTOGRAPH.convert("CMYK"))),
    "jpeg YCCK": ("JPEG", "CMYK", jpeg_in_ycck),
    "jpeg with a profile": ("JPEG", "RGB", lambda: encoded(PHOTOGRAPH, icc_profile=PROFILE)),
    "jpeg turned by XMP": ("JPEG", "RGB", lambda: encoded(PHOTOGRAPH, xmp=XMP)),
    "jpeg with broken EXIF": ("JPEG", "RGB", lambda: encoded(PHOTOGRAPH, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")),
    "jpeg of several pictures": ("MPO", "RGB", lambda: animated("MPO")),
    **{
        f"jpeg with orientation {orientation}": ("JPEG", "RGB", lambda each=orientation: turned(each, "JPEG"))
        for orientation in range(1, 9)
    },
    "png": ("PNG", "RGB", lambda: encoded(PHOTOGRAPH, "PNG")),
    "png with orientation 6": ("PNG", "RGB", lambda: turned(6, "PNG")),
    "png RGBA": ("PNG", "RGBA", lambda: encoded(with_alpha("RGBA"), "PNG")),
    "png LA": ("PNG", "LA", lambda: encoded(with_alpha("LA"), "PNG")),
    "png with a transparent colour": ("PNG", "RGB", lambda: encoded(PHOTOGRAPH, "PNG", transparency=(0, 0, 0))),
    "png with a transparent grey": ("PNG", "L", lambda: encoded(PHOTOGRAPH.convert("L"), "PNG", transparency=20)),
    "png of a palette": ("PNG", "P", lambda: encoded(INDEXED, "PNG")),
    "png with a transparent entry": ("PNG", "P", lambda: encoded(INDEXED, "PNG", transparency=5)),
    "png with a fading palette": ("PNG", "P", lambda: encoded(INDEXED, "PNG", transparency=bytes(range(0, 256, 4)))),
    "png in 4 bits": ("PNG", "P", lambda: encoded(PHOTOGRAPH.quantize(16), "PNG", bits=4)),
    "png in 1 bit": ("PNG", "1", lambda: encoded(PHOTOGRAPH.convert("1"), "PNG")),
    "png in 16 bits, grey": ("PNG", "I;16", lambda: encoded(Image.fromarray(deep(3)[..., 1]), "PNG")),
    "png in 16 bits, RGB": ("PNG", "RGB", lambda: deep_png(3)),
    "png in 16 bits, RGBA": ("PNG", "RGBA", lambda: deep_png(4)),
    "png, animated": ("PNG", "RGB", lambda: animated("PNG")),
    "webp": ("WEBP", "RGB", lambda: encoded(PHOTOGRAPH, "WEBP")),
    "webp with orientation 8": ("WEBP", "RGB", lambda: turned(8, "WEBP", lossless=True)),
    "webp RGBA": ("WEBP", "RGBA", lambda: encoded(with_alpha("RGBA"), "WEBP")),
    "avif": ("AVIF", "RGB", lambda: encoded(PHOTOGRAPH, "AVIF")),
    "avif with orientation 6": ("AVIF", "RGB", lambda: turned(6, "AVIF")),
    "avif RGBA": ("AVIF", "RGBA", lambda: encoded(with_alpha("RGBA"), "AVIF")),
    "avif, animated": ("AVIF", "RGB", lambda: animated("AVIF")),
    "webp, animated": ("WEBP", "RGBA", lambda: animated("WEBP")),
}

# Of formats that only a data set may hold: kind -> the file, and another file of the same picture, in a served format
OF_DATA_SETS: dict[str, tuple[str, Callable[[], bytes], Callable[[], bytes]]] = {
    "gif": ("gif", lambda: encoded(INDEXED, "GIF"), lambda: encoded(INDEXED, "PNG")),
    "gif with a transparent entry": (
        "gif",
        lambda: encoded(INDEXED, "GIF", transparency=5, optimize=False),
        lambda: encoded(INDEXED, "PNG", transparency=5),
    ),
    "gif, animated": (
        "gif",
        lambda: encoded(INDEXED, "GIF", save_all=True, append_images=[INDEXED.rotate(90)]),
        lambda: encoded(INDEXED, "PNG"),
    ),
    "bmp": ("bmp", lambda: encoded(PHOTOGRAPH, "BMP"), lambda: encoded(PHOTOGRAPH, "PNG")),
    "tiff with orientation 6": ("tiff", lambda: turned(6, "TIFF"), lambda: encoded(PHOTOGRAPH, "PNG")),
    "tiff in 16 bits": (
        "tif",
        lambda: encoded(Image.fromarray(deep(3)[..., 1]), "TIFF"),
        lambda: encoded(Image.fromarray(deep(3)[..., 1]), "PNG"),
    ),
    "tiff RGBA": (
        "tiff",
        lambda: encoded(with_alpha("RGBA"), "TIFF"),
        lambda: encoded(with_alpha("RGBA"), "PNG"),
    ),
    "pgm in 16 bits": (
        "pgm",
        lambda: encoded(Image.fromarray(deep(3)[..., 1]), "PPM"),
        lambda: encoded(Image.fromarray(deep(3)[..., 1]), "PNG"),
    ),
    "avif turned": (
        "avif",
        lambda: turned(6, "AVIF", quality=100, subsampling="4:4:4"),
        lambda: encoded(Image.open(io.BytesIO(encoded(PHOTOGRAPH, "AVIF", quality=100, subsampling="4:4:4"))), "PNG"),
    ),
}


def data_set(folder: Path, files: dict[str, bytes]) -> LabelledImages:
    """A folder with one class, whose images are in the order of their names."""
    (folder / "test" / "thing").mkdir(parents=True)
    for name, content in files.items():
        (folder / "test" / "thing" / name).write_bytes(content)
    return open_images(folder, "test")


def model_input(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(resize_and_crop(image, PREPROCESSING).copy()).permute(2, 0, 1)


def trained_on(images: LabelledImages) -> list[Pixels]:
    """What a run reads, with the model's own geometry in place of augmentation."""
    augmented = AugmentedImages(images, model_input, seed=0)
    drawn = [augmented[Draw(image=index, epoch=0, place=index)] for index in range(len(images))]
    assert all(undecodable == -1 for _, _, undecodable in drawn)
    return [pixels.permute(1, 2, 0).numpy() for pixels, _, _ in drawn]


def evaluated(images: LabelledImages) -> list[Pixels]:
    batches = evaluation_batches(images, PREPROCESSING, batch_size=8, workers=0)
    return [pixels.permute(1, 2, 0).numpy() for batch, _, _ in batches for pixels in batch]


def exported_on(folder: Path) -> list[Pixels]:
    sample, *_ = load_samples(folder / "test" / "thing", PREPROCESSING, None, label_names=("thing",), calibrates=False)
    return list(sample.images)


def classified_in_bulk(folder: Path) -> list[Pixels]:
    location = str(folder / "test" / "thing")
    (part,) = find_parts(location, part_images=1000)
    model = StoredModel(name="model", version="1", graph=b"", digest="", labels=("thing",), preprocessing=PREPROCESSING)
    work = Work(
        images=location, output="", model=model, top_k=1, batch_size=8, max_image_pixels=Limits().max_image_pixels
    )
    found = decode_part(work, part)
    assert found.problems == [None] * len(part.names())
    return list(found.pixels)


def served(images: LabelledImages) -> list[Pixels]:
    """From a decoder process of the gateway."""

    async def run() -> list[Pixels]:
        decoder = Decoder(Decoding(processes=1), Limits(), lambda: None)
        try:
            await decoder.start()
            contents = [images.encoded(index) for index in range(len(images))]
            return [(await decoder.model_input(content, PREPROCESSING)).pixels for content in contents]
        finally:
            decoder.close()

    return asyncio.run(run())


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")  # of broken EXIF
def test_every_kind_of_picture_gives_every_stage_the_same_pixels(tmp_path: Path) -> None:
    files = {f"{place:02}.{kind[:4].strip(' ,')}": make() for place, (kind, (*_, make)) in enumerate(SERVED.items())}
    images = data_set(tmp_path, files)
    assert len(images) == len(SERVED)
    for content, (kind, (image_format, mode, _)) in zip(files.values(), SERVED.items(), strict=True):
        opened = Image.open(io.BytesIO(content))
        assert (opened.format, opened.mode) == (image_format, mode), kind

    reference = served(images)
    for stage, found in {
        "training": trained_on(images),
        "evaluation": evaluated(images),
        "export": exported_on(tmp_path),
        "bulk": classified_in_bulk(tmp_path),
    }.items():
        for kind, ours, theirs in zip(SERVED, found, reference, strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{stage}, {kind}")
    upright = dict(zip(SERVED, reference, strict=True))
    for orientation in range(1, 9):  # JPEG loses a little; a wrong turn differs by far more
        distance = np.abs(upright[f"jpeg with orientation {orientation}"].astype(int) - upright["png"]).mean()
        assert distance < 4, orientation


def test_the_formats_of_data_sets_follow_the_same_rules(tmp_path: Path) -> None:
    files, twins = {}, {}
    for place, (suffix, make, twin) in enumerate(OF_DATA_SETS.values()):
        files[f"{place:02}.{suffix}"], twins[f"{place:02}.png"] = make(), twin()
    images, expected = data_set(tmp_path / "files", files), data_set(tmp_path / "twins", twins)
    assert len(images) == len(OF_DATA_SETS)
    for index, kind in enumerate(OF_DATA_SETS):
        ours, theirs = np.asarray(decode(images, index)), np.asarray(decode(expected, index))
        if kind == "avif turned":  # encoded lying on its side, so its losses are others
            assert ours.shape == theirs.shape
            assert np.abs(ours.astype(int) - theirs).mean() < 1
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=kind)
    with pytest.raises(UnsupportedType, match="not an image in JPEG, PNG, WebP or AVIF"):
        served(images)


def test_levels_without_a_white_are_refused_by_name(tmp_path: Path) -> None:
    levels = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    images = data_set(tmp_path, {"depth.tiff": encoded(Image.fromarray(levels), "TIFF")})
    with pytest.raises(DataError, match=r"depth\.tiff cannot be decoded: the TIFF image holds floating-point values"):
        decode(images, 0)
