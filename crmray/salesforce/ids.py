"""Salesforce record ids: 15 case-sensitive characters, or 18 with a suffix that makes them safe where case is lost.

The suffix has one character for each five of the id: a number of five bits, bit j set if character j is a capital
letter, written with A..Z and 0..5 (Salesforce help, "ID fields").
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from crmray.errors import DataError

DIGITS = np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", np.uint8)
SUFFIX = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ012345", np.uint8)
POD = b"5e0"
"""characters 4 to 6 of the ids made here"""


def to_18(id_: str) -> str:
    """The 18-character form of an id of 15 or 18 characters; DataError for anything else or a wrong suffix."""
    if len(id_) not in (15, 18) or not id_.isascii() or not id_.isalnum():
        raise DataError(f"got id {id_!r}, expected a Salesforce id of 15 or 18 letters and digits")
    characters = np.frombuffer(id_[:15].encode(), np.uint8)[None]
    full = id_[:15] + _suffix(characters).tobytes().decode()
    if len(id_) == 18 and id_.upper() != full.upper():
        raise DataError(f"got id {id_!r}, whose last three characters should be {full[15:]}: it was mistyped or cut")
    return full


def make(prefix: str, numbers: np.ndarray) -> pa.StringArray:
    """18-character ids with a key prefix (`001` is Account) and a serial number each, 0 <= number < 62**9."""
    characters = np.empty((len(numbers), 18), np.uint8)
    characters[:, :3] = np.frombuffer(prefix.encode(), np.uint8)
    characters[:, 3:6] = np.frombuffer(POD, np.uint8)
    rest = np.asarray(numbers, np.int64)
    assert not len(rest) or (rest.min() >= 0 and rest.max() < 62**9), "serial number out of range"
    for position in range(14, 5, -1):
        rest, digit = np.divmod(rest, 62)
        characters[:, position] = DIGITS[digit]
    characters[:, 15:] = _suffix(characters[:, :15])
    offsets = np.arange(0, 18 * len(numbers) + 1, 18, dtype=np.int32)
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(characters.tobytes()))


def _suffix(characters: np.ndarray) -> np.ndarray:
    """(N, 3) suffix of (N, 15) characters."""
    capital = (characters >= ord("A")) & (characters <= ord("Z"))
    return SUFFIX[capital.reshape(-1, 3, 5) @ (1 << np.arange(5))]
