"""Files of images, written in memory, and what is read of them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import tifffile
import torch
from PIL import Image
from torch import Tensor

from hiermim_zoo.data.decoding import Form, decoded
from hiermim_zoo.data.scale import Scale

DEEP = (np.arange(24 * 16) * 170).reshape(24, 16).astype(np.uint16)  # 0 to 65110
SIX = np.random.default_rng(2).integers(0, 65536, (6, 20, 30)).astype(np.uint16)  # [C, H, W]


def encoded(array: np.ndarray[Any, Any], kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


def png16(array: np.ndarray[Any, Any]) -> bytes:
    """A PNG of 16 bits a sample, uint16 [H, W, C] (PIL writes none with several bands)."""
    height, width, bands = array.shape

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    end = chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + end


def npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def read(content: bytes, channels: int = 1, scale: str = "dtype", **form: Any) -> Any:
    return decoded(io.BytesIO(content), Form(channels, Scale.parse(scale), **form))


def pixels(image: Any) -> Tensor:
    """[C, H, W], from 0 to 1."""
    return image if isinstance(image, Tensor) else by_range(np.moveaxis(np.asarray(image), -1, 0), 0, 255)


def by_range(array: np.ndarray[Any, Any], low: float, high: float) -> Tensor:
    return torch.from_numpy(np.clip((array - low) / (high - low), 0, 1).astype(np.float32))


def tiff(array: np.ndarray[Any, Any], **how: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **how)
    return file.getvalue()
