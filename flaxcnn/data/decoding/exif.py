"""Reading and resetting the orientation in EXIF data, which has the format of a TIFF file."""

import struct


def orientation(tiff: bytes) -> int:
    """Returns the orientation (tag 0x0112 of the first directory), 1 to 8; 1 if it is missing or invalid."""
    order, at = _find_orientation(tiff)
    value = struct.unpack_from(f"{order}H", tiff, at)[0] if at else 1
    return value if 1 <= value <= 8 else 1


def without_orientation(tiff: bytes) -> bytes:
    """Returns a copy of a TIFF file in which the orientation, if present, is 1 (upright)."""
    order, at = _find_orientation(tiff)
    return tiff[:at] + struct.pack(f"{order}H", 1) + tiff[at + 2 :] if at else tiff


def _find_orientation(tiff: bytes) -> tuple[str, int]:
    """Returns (byte order for `struct`, offset of the value of tag 0x0112); the offset is 0 without that tag."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2], "")
    try:
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, at)
        for entry in range(entries if order else 0):
            tag, _, _, _ = struct.unpack_from(f"{order}HHIH", tiff, at + 2 + 12 * entry)
            if tag == 0x0112:
                return order, at + 2 + 12 * entry + 8
    except struct.error:  # the file ends too early
        pass
    return order, 0
