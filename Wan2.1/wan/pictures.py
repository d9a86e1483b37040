"""Picture files as RGB of 8 bits, upright; no torch, so that bad input ends early."""

import warnings
from pathlib import Path

import numpy as np
from loguru import logger
from PIL import Image, ImageOps

from profiling_core.errors import InputError
from profiling_core.files import first_line

# readers that run no other program, as that of EPS would
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF")


def read_picture(path: Path, option: str) -> Image.Image:
    """The picture in a file; InputError names the option, the file and what is wrong.

    Unlike the official code, which drops them: the rotation that EXIF data ask for is applied,
    transparent pixels show white, 16 bits are scaled to 8. An animation gives its first frame.
    """
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise InputError(f"{option} {path} {what}: name a picture")
    try:
        Image.init()
        known = [name for name in FORMATS if name in Image.OPEN]
        with warnings.catch_warnings(), Image.open(path, formats=known) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if getattr(image, "is_animated", False) and image.format != "MPO":
                logger.warning(f"{option} {path} is animated: its first frame is taken")
            return _as_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise InputError(
            f"{option} {path} is too large: at most {most:,} pixels are read, scale it down"
        ) from None
    except Exception as error:  # damage can surface anywhere in a reader
        raise InputError(
            f"{option} {path} cannot be read as a picture ({first_line(error)}): "
            "take a whole PNG or JPEG file"
        ) from None


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257 + 0.5).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture scaled to cover `size` (width, height), and its centre cut out."""
    if picture.size == size:
        return picture
    return ImageOps.fit(picture, size, Image.Resampling.BICUBIC)
