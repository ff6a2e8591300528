"""One file of pictures as arrays, in the number type of the file.

    read_file    PNG, JPEG, TIFF, BMP, WebP, and videos: GIF, MP4, AVI, MOV, WebM, MKV
    Stack        pictures that follow each other in one array

1-bit pictures are bool, 8-bit ones uint8, 16-bit ones uint16, other whole numbers int32, TIFFs of
floats float32. Colour whose channels agree is grey; a palette is the colours that it names. If
a shape is in the alpha channel, the picture is that channel; else transparent pixels become black.
What a decoder would change or guess is refused: a camera's rotation, inverted 16-bit greys, GIFs
whose frames last differently, because writers merge equal ones.

A file is given only to the decoder of its extension, and nothing is unpickled.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from diverse_sampling.errors import reject

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}
PICTURES |= {".bmp": "BMP", ".webp": "WEBP"}
FFMPEG_VIDEOS = (".mp4", ".avi", ".mov", ".webm", ".mkv")
VIDEOS = (".gif", *FFMPEG_VIDEOS)
LOSSY = (".jpg", ".jpeg", ".webp")  # in which a value of a label does not survive
ORIENTATION, PHOTOMETRIC, BITS = 274, 262, 258  # tags of EXIF and TIFF


def refuse(path: Path, accepted: str) -> NoReturn:
    """Raise SettingError for a file or folder of a user's data that is not what is accepted."""
    reject("frames", str(path), accepted)


def short(error: object) -> str:
    """What an exception says, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.replace("allow_pickle=False", "nothing is unpickled")[:200]


def read_file(path: Path) -> list[np.ndarray]:
    """The pictures in a file, each (H, W) or (H, W, 3): one, or the frames of a video or a stack.

    Raises SettingError for a file that is damaged, or not what its extension says, and where its
    decoder is not installed.
    """
    if path.suffix.lower() in FFMPEG_VIDEOS:
        return _read_ffmpeg(path)
    from PIL import Image, ImageSequence

    kind = "GIF" if path.suffix.lower() == ".gif" else PICTURES[path.suffix.lower()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("error", "Tag data larger|Truncated File")  # of a TIFF
            with Image.open(path, formats=[kind]) as image:
                if image.mode[0] in "RL" and kind == "PNG" and "16B" in str(image.tile):
                    return [_read_16_bit_colour(path)]
                if getattr(image, "n_frames", 1) == 1:
                    return [_pixels(image)]
                pictures, durations = [], set()
                for each in ImageSequence.Iterator(image):
                    pictures.append(_pixels(each))
                    durations.add(each.info.get("duration") or 0)
    except Exception as error:  # Pillow's decoders raise of every kind where a file is damaged
        refuse(path, f"a {path.suffix[1:].upper()} that can be read ({short(error)})")
    if kind == "GIF" and len(durations) > 1:
        refuse(path, f"frames that last equally; they last {sorted(durations)} ms")
    return pictures


def _read_16_bit_colour(path: Path) -> np.ndarray:
    """A PNG with 16 bits for each of several channels, which Pillow cuts to 8."""
    from torchvision.io import ImageReadMode, decode_image, read_file

    pixels = decode_image(read_file(str(path)), ImageReadMode.UNCHANGED).numpy()
    return _in_channels(np.moveaxis(pixels, 0, -1), 65535)


def _in_channels(pixels: np.ndarray, white: int) -> np.ndarray:
    """Pixels (H, W, 1 to 4) without alpha, and grey if their channels agree."""
    if pixels.shape[-1] in (2, 4):
        pixels, alpha = pixels[..., :-1], pixels[..., -1]
        if (alpha != white).any():
            visible = pixels[alpha > 0]
            if len(visible) == 0 or (visible == visible[0]).all():
                return alpha  # one colour: the shape is in the alpha channel
            weight = alpha[..., None].astype(np.uint64)
            pixels = ((pixels * weight + white // 2) // white).astype(alpha.dtype)
    if all((pixels[..., 0] == pixels[..., c]).all() for c in range(1, pixels.shape[-1])):
        return np.ascontiguousarray(pixels[..., 0])
    return pixels


def _pixels(image: Any) -> np.ndarray:
    """The pixels of an open picture, (H, W) or (H, W, 3). Raises ValueError for other kinds."""
    mode, tags = image.mode, getattr(image, "tag_v2", {})
    turned = tags.get(ORIENTATION, 1)  # which Pillow turns back in a TIFF, and only there
    image.load()
    if "exif" in image.info:
        turned = image.getexif().get(ORIENTATION, turned)
    if turned != 1:
        raise ValueError("it is stored turned, EXIF says how; store it as it is seen")
    if mode in ("P", "PA"):
        transparent = mode == "PA" or "transparency" in image.info
        image = image.convert("RGBA" if transparent else "RGB")
    elif mode in ("La", "RGBa"):
        image = image.convert(mode.upper())
    elif mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    pixels = np.asarray(image)
    if pixels.ndim == 3 and max(tags.get(BITS, (8,))) > 8:
        raise ValueError("more than 8 bits a colour, which would be cut; store it as PNG")
    if mode.startswith(("I", "F")):
        if tags.get(PHOTOMETRIC) == 0:
            raise ValueError("0 is white in it; store it with 0 as black")
        if mode == "I" and image.format == "PNG" or mode.startswith("I;16"):
            return pixels.astype(np.uint16)
        return pixels
    if pixels.dtype not in (bool, np.uint8) or pixels.size == 0:
        raise ValueError(f"a picture of mode {mode}")
    return _in_channels(pixels, 255) if pixels.ndim == 3 else pixels


def _read_ffmpeg(path: Path) -> list[np.ndarray]:
    """The frames of a video, each once."""
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError:
        refuse(path, "a video whose decoder is here; pip install imageio-ffmpeg")
    import imageio.v3

    try:
        video = imageio.v3.imread(path, plugin="FFMPEG", output_params=["-fps_mode", "passthrough"])
    except Exception as error:  # of every kind, from the decoder
        refuse(path, f"a video that can be read ({short(error)})")
    if video.ndim != 4 or len(video) == 0:
        refuse(path, f"a video that can be read (its frames have shape {video.shape})")
    # Compressed grey comes back as almost equal channels.
    spread = video.max(-1).astype(np.int16) - video.min(-1)
    return list(video.mean(-1).round().astype(np.uint8) if spread.max() <= 8 else video)


class Stack:
    """Pictures of one size one after the other in one array.

    Numbers stay as they are; types are widened, and where grey and colour meet, all become colour.

    Arguments:
        expected: how many there will be, if each file holds one
    """

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.room = np.empty((0, 0, 0), bool)
        self.types: list[np.dtype] = []  # of each picture's file

    def add(self, picture: np.ndarray, path: Path) -> None:
        """Append a picture (H, W) or (H, W, 3). Raises SettingError if it does not fit."""
        n, room = len(self.types), self.room
        if n == 0:
            room = np.empty((self.expected, *picture.shape), picture.dtype)
        if picture.shape[:2] != room.shape[1:3]:
            a, b = (f"{h} x {w}" for h, w in (room.shape[1:3], picture.shape[:2]))
            refuse(path, f"pictures of one size; found {a} and {b} px")
        if (picture.dtype.kind == "f") != (room.dtype.kind == "f"):
            refuse(path, "pictures of floats only, or of integers only")
        if picture.ndim < room.ndim - 1:
            picture = picture[..., None]
        elif picture.ndim > room.ndim - 1:
            room = np.repeat(room[..., None], 3, -1)
        wide = np.promote_types(room.dtype, picture.dtype)
        room = room if room.dtype == wide else room.astype(wide)
        if n == len(room):  # in place: a larger array beside this one would double the memory
            room.resize((n + n // 8 + 1, *room.shape[1:]), refcheck=False)
        room[n] = picture
        self.room = room
        self.types.append(picture.dtype)

    def pixels(self) -> np.ndarray:
        """All pictures, (n, H, W) or (n, H, W, 3)."""
        self.room.resize((len(self.types), *self.room.shape[1:]), refcheck=False)
        return self.room
