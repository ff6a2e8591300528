"""Pictures and videos as arrays, in the number type of their files.

    read_picture   PNG, JPEG, TIFF, BMP, WebP: (H, W) grey, (H, W, 3) colour
    read_video     GIF, multi-page TIFF, MP4, AVI, MOV, WebM: (T, H, W) or (T, H, W, 3)
    Stack          pictures that follow each other in one array, which grows without a second copy

8-bit and 1-bit pictures are uint8 from 0 to 255, 16-bit ones uint16 from 0 to 65,535, TIFFs of
floats float32. Colour whose channels agree is grey. A palette of colours counts as class labels in
an answer and as colours in a frame. Where the shape is in the alpha channel, the picture is that
channel; else transparent pixels become black.

A file is given only to the decoder of its extension, and nothing is unpickled.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, Iterable, NoReturn

import numpy as np

from diverse_sampling.errors import reject

PICTURES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".webp": "WEBP",
}
FFMPEG_VIDEOS = (".mp4", ".avi", ".mov", ".webm", ".mkv")
VIDEOS = (".gif", *FFMPEG_VIDEOS)
LOSSY = (".jpg", ".jpeg", ".webp")  # in which a value of a label does not survive


def natural(path: Path) -> list[tuple[int, int, str]]:
    """A sort key of paths by which frame 2 comes before frame 10."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


def is_hidden(path: Path) -> bool:
    """Whether a file or folder belongs to a system or an editor, not to the data."""
    return path.name.startswith((".", "__MACOSX")) or path.name in ("Thumbs.db", "desktop.ini")


def files_in(folder: Path, extensions: Iterable[str]) -> list[Path]:
    """The visible files of a folder with one of some extensions, in natural order."""
    wanted = tuple(extensions)
    paths = [p for p in folder.iterdir() if p.suffix.lower() in wanted and not is_hidden(p)]
    return sorted((p for p in paths if p.is_file()), key=natural)


def folders_in(folder: Path) -> list[Path]:
    """The visible subfolders of a folder, in natural order."""
    folders = (p for p in folder.iterdir() if p.is_dir() and not is_hidden(p))
    return sorted(folders, key=natural)


# ---------------------------------------------------------------- one file


def refuse(path: Path, accepted: str) -> NoReturn:
    """Raise SettingError for a file or folder of a user's frames that is not what is accepted."""
    reject("frames", str(path), accepted)


def _unreadable(path: Path, what: str, error: object) -> NoReturn:
    refuse(path, f"{what} that can be read ({' '.join(str(error).split())[:200]})")


def _opened(path: Path) -> Any:
    """A file that Pillow has opened, by the decoder of its extension alone."""
    from PIL import Image

    kind = "GIF" if path.suffix.lower() == ".gif" else PICTURES[path.suffix.lower()]
    return Image.open(path, formats=[kind])


def _without_alpha(pixels: np.ndarray) -> np.ndarray:
    """Pixels (H, W, 2) or (H, W, 4), uint8, without their alpha channel: (H, W) or (H, W, 3)."""
    colours, alpha = pixels[..., :-1], pixels[..., -1]
    opaque = alpha == 255
    if not opaque.all():
        visible = colours[alpha > 0]
        if len(visible) == 0 or (visible == visible[0]).all():
            return alpha  # one colour: the shape is in the alpha channel
        weight = alpha[..., None].astype(np.uint16)
        colours = ((colours * weight + 127) // 255).astype(np.uint8)
    return colours[..., 0] if colours.shape[-1] == 1 else colours


def _grey_if_alike(pixels: np.ndarray) -> np.ndarray:
    """Colours (..., H, W, 3) whose channels agree as (..., H, W)."""
    if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all():
        return np.ascontiguousarray(pixels[..., 0])
    return pixels


def _pixels(image: Any, labels: bool) -> np.ndarray:
    """The pixels of an open picture: (H, W) or (H, W, 3)."""
    mode = image.mode
    if mode in ("P", "PA") and labels:
        indices = np.asarray(image)
        palette = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        used = palette[np.minimum(np.unique(indices), len(palette) - 1)]
        if (used[:, :1] != used).any():
            return indices  # colours that stand for classes
    if mode in ("P", "PA"):
        transparent = mode == "PA" or "transparency" in image.info
        image = image.convert("RGBA" if transparent else "RGB")
    elif mode == "La" or mode == "RGBa":
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode])
    elif mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    pixels = np.asarray(image)
    if mode == "1":
        return pixels.astype(np.uint8) * np.uint8(255)
    if mode == "I":  # 16-bit greys, in older versions of Pillow
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("32-bit integers, which have no white level")
        return pixels.astype(np.uint16)
    if mode.startswith("I;16"):
        return pixels.astype(np.uint16)
    if image.mode in ("LA", "RGBA"):
        pixels = _without_alpha(pixels)
    if pixels.dtype == np.uint8 and pixels.ndim == 3:
        pixels = _grey_if_alike(pixels)
    if pixels.dtype not in (np.uint8, np.float32) or pixels.size == 0:
        raise ValueError(f"a picture of mode {mode}")
    return pixels


def _decoded(path: Path, labels: bool, several: bool) -> list[np.ndarray]:
    """All pictures in a file that Pillow reads. Raises SettingError."""
    from PIL import Image, ImageSequence

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("error", "Tag data larger|Truncated File")  # of a TIFF
            with _opened(path) as image:
                count = getattr(image, "n_frames", 1)
                if not several:
                    if count > 1:
                        raise ValueError(f"it holds {count} pictures; a video stands by itself")
                    return [_pixels(image, labels)]
                return [_pixels(each, labels) for each in ImageSequence.Iterator(image)]
    except Exception as error:  # Pillow's decoders raise of every kind where a file is damaged
        _unreadable(path, f"a {path.suffix[1:].upper()}", error)


def is_stack(path: Path) -> bool:
    """Whether a file is a TIFF of several pages; False where it cannot be opened."""
    if PICTURES.get(path.suffix.lower()) != "TIFF":
        return False
    try:
        with _opened(path) as image:
            return getattr(image, "n_frames", 1) > 1
    except Exception:  # as in `_decoded`; reading it will say why
        return False


def read_picture(path: Path, labels: bool = False) -> np.ndarray:
    """The picture in a file, (H, W) or (H, W, 3), uint8, uint16 or float32.

    Arguments:
        path: of a file with one of the extensions in PICTURES
        labels: whether a palette of colours stands for class labels

    Raises SettingError for a file that is damaged, or not what its extension says.
    """
    return _decoded(path, labels, several=False)[0]


def read_video(path: Path) -> np.ndarray:
    """The frames of a video, (T, H, W) or (T, H, W, 3), uint8.

    Raises SettingError for a file that is damaged, and where its decoder is not installed.
    """
    if path.suffix.lower() not in FFMPEG_VIDEOS:
        frames = _decoded(path, False, several=True)
        if any(frame.ndim != frames[0].ndim for frame in frames):
            frames = [as_colour(frame) for frame in frames]
        return np.stack(frames)
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError:
        refuse(path, "a video whose decoder is here; pip install imageio-ffmpeg")
    import imageio.v3

    try:
        video = imageio.v3.imread(path, plugin="FFMPEG")
    except Exception as error:  # of every kind, from the decoder
        _unreadable(path, "a video", error)
    if video.ndim != 4 or len(video) == 0:
        _unreadable(path, "a video", f"its frames have shape {video.shape}")
    # Compressed grey comes back as almost equal channels.
    spread = video.max(-1).astype(np.int16) - video.min(-1)
    return video.mean(-1).round().astype(np.uint8) if spread.max() <= 8 else video


# ---------------------------------------------------------------- many files


def as_colour(pixels: np.ndarray) -> np.ndarray:
    """Grey pixels (..., H, W) as (..., H, W, 3)."""
    return np.repeat(pixels[..., None], 3, -1)


class Stack:
    """Pictures of one size one after the other in one array, `pixels` (n, H, W) or (n, H, W, 3).

    Each keeps its brightness: where 8-bit and 16-bit pictures meet, all become 16-bit ones, where
    grey and colour meet, all become colour.
    """

    def __init__(self) -> None:
        self.pixels: np.ndarray | None = None
        self.count = 0

    def add(self, picture: np.ndarray, path: Path) -> None:
        """Append a picture (H, W) or (H, W, 3). Raises SettingError where it does not fit."""
        if self.pixels is None:
            self.pixels = np.empty((0, *picture.shape), picture.dtype)
        if picture.shape[:2] != self.pixels.shape[1:3]:
            sizes = " and ".join(
                f"{height} x {width}"
                for height, width in (self.pixels.shape[1:3], picture.shape[:2])
            )
            refuse(path, f"pictures of one size; found {sizes} px")
        picture, pixels = _alike(picture, self.pixels, path)
        self.pixels = pixels
        # In place: a larger array beside this one would double the memory.
        self.pixels.resize((self.count + 1, *pixels.shape[1:]), refcheck=False)
        self.pixels[self.count] = picture
        self.count += 1


def _alike(a: np.ndarray, b: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A picture and a stack of them, both grey or colour and of one number type."""
    if a.ndim < b.ndim - 1:
        a = as_colour(a)
    elif a.ndim > b.ndim - 1:
        b = as_colour(b)
    if a.dtype != b.dtype:
        if np.float32 in (a.dtype, b.dtype):
            refuse(path, "pictures of floats only, or of integers only")
        a, b = (each if each.dtype == np.uint16 else each * np.uint16(257) for each in (a, b))
    return a, b
