"""Reads the MNIST files (IDX format, gzipped or not) of a folder."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_idx(path: str | Path) -> np.ndarray:
    """One IDX file of unsigned bytes, gzipped if its name ends in .gz."""
    path = Path(path)
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is no whole gzip file: {error}; download it again.") from None
    zero, kind, rank = struct.unpack(">HBB", content[:4]) if len(content) >= 4 else (-1, -1, 0)
    if (zero, kind) != (0, 8):
        raise ValueError(
            f"{path} does not begin like an IDX file of unsigned bytes (0, 0, 8, rank), but with"
            f" {list(content[:4])}; download the file again."
        )
    start = 4 + 4 * rank
    shape = struct.unpack(f">{rank}I", content[4:start]) if len(content) >= start else ()
    if not shape or len(content) - start != math.prod(shape):
        raise ValueError(
            f"{path} is truncated or damaged: {len(content)} bytes do not hold the array of shape"
            f" {shape} that its header announces; download the file again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def load(folder: str | Path, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 28, 28, 1] and labels int32 [N] of the split "train" or "test"."""
    if split not in _FILES:
        raise ValueError(f'split={split!r}; expected "train" or "test".')
    arrays = []
    for name in _FILES[split]:
        found = [p for p in (Path(folder) / f"{name}.gz", Path(folder) / name) if p.is_file()]
        if not found:
            raise ValueError(
                f"The data folder {str(folder)!r} holds neither {name}.gz nor {name}; give the"
                " folder with the four MNIST files (IDX format, gzipped or not)."
            )
        arrays.append(read_idx(found[0]))
    images, labels = arrays
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{str(folder)!r} holds images of shape {images.shape} and labels of shape"
            f" {labels.shape}; expected [N, 28, 28] and [N]. Are these the MNIST files?"
        )
    if labels.max(initial=0) > 9:
        raise ValueError(
            f"{str(folder)!r} holds labels up to {labels.max()}; expected digits, 0 to 9. Are these"
            " the MNIST files?"
        )
    return images[..., None], labels.astype(np.int32)


def to_pixels(images: np.ndarray) -> np.ndarray:
    """Bytes 0..255 to float32 in [-1, 1], the range that the digits network works in."""
    return images.astype(np.float32) / 127.5 - 1.0
