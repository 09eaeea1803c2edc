"""IDX, the format of MNIST and Fashion-MNIST."""

from __future__ import annotations

import math
import struct

import numpy as np
from numpy.typing import NDArray

from convlens.errors import DataError


def idx_array(raw: bytes, name: str) -> NDArray[np.uint8]:
    """The array in the bytes of an IDX file; read-only.

    IDX: two zero bytes, the type (0x08 for uint8), the rank, one big-endian uint32 per axis, then
    the values in row-major order.

        >>> from convlens.data.idx_files import idx_array
        >>> idx_array(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]), "labels").tolist()
        [7, 8, 9]

    Args:
        raw: the whole file, decompressed.
        name: the file in messages.

    Raises:
        DataError: if it is not such a file, or is cut.
    """
    rank = raw[3] if raw[:3] == b"\x00\x00\x08" and len(raw) > 3 else 0
    start = 4 + 4 * rank
    if rank == 0 or len(raw) < start:
        raise DataError(
            f"{name} is not an IDX file of uint8 values: it begins with {raw[:4].hex(' ')!r}; "
            "expected 00 00 08 and the rank."
        )
    shape: tuple[int, ...] = struct.unpack_from(f">{rank}I", raw, 4)
    if len(raw) - start != math.prod(shape):
        raise DataError(
            f"{name} is damaged: it has {len(raw) - start:,} values, but its header says "
            f"{'×'.join(map(str, shape))}."
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
