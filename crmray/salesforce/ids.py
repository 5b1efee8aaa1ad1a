"""Salesforce record ids: 15 case-sensitive characters, or 18 with a suffix that makes them safe where case is lost.

The suffix has one character for each five of the id: a number of five bits, bit j set if character j is a capital
letter, written with A..Z and 0..5 (Salesforce help, "ID fields").
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa

from crmray.errors import DataError

DIGITS = np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", np.uint8)
SUFFIX = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ012345", np.uint8)
# Key prefix (3), instance (2, one of them a letter), a reserved 0, then nine more.
SHORT = r"^([a-z][0-9A-Za-z]{2}|[0-9]{2}[0-9A-Za-z])([0-9][A-Za-z]|[A-Za-z][0-9A-Za-z])0[0-9A-Za-z]{9}$"
"""what an id of 15 characters looks like that is Salesforce's and not somebody else's"""
POD = b"5e0"
"""characters 4 to 6 of the ids made here"""


def to_18(id_: str) -> str:
    """The 18-character form of an id of 15 or 18 characters; DataError for anything else or a wrong suffix."""
    if len(id_) not in (15, 18) or not id_.isascii() or not id_.isalnum():
        raise DataError(f"got id {id_!r}, expected a Salesforce id of 15 or 18 letters and digits")
    characters = np.frombuffer(id_[:15].encode(), np.uint8)[None]
    full = id_[:15] + suffix(characters).tobytes().decode()
    if len(id_) == 18 and id_.upper() != full.upper():
        raise DataError(f"got id {id_!r}, whose last three characters should be {full[15:]}: it was mistyped or cut")
    return full


def normalize(id_: str) -> str:
    """An id as it lies in the lake (`data.parse.ids`): no space around it, SHORT ones with their suffix, others as they
    are."""
    id_ = id_.strip()
    return to_18(id_) if len(id_) == 15 and re.match(SHORT, id_) else id_


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
    characters[:, 15:] = suffix(characters[:, :15])
    offsets = np.arange(0, 18 * len(numbers) + 1, 18, dtype=np.int32)
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(characters.tobytes()))


def suffix(characters: np.ndarray) -> np.ndarray:
    """(N, 3) suffix of (N, 15) characters."""
    capital = (characters >= ord("A")) & (characters <= ord("Z"))
    return SUFFIX[capital.reshape(-1, 3, 5) @ (1 << np.arange(5))]
