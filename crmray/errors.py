"""Every error that crmray raises on purpose.

    CrmrayError
    ├── ConfigError               the org file or a setting is wrong
    ├── DataError                 the data cannot be used as it is
    │   ├── SchemaError           a table lacks a column or has the wrong type
    │   ├── NotEnoughDataError    too little data for an honest model
    │   └── ReconcileError        what was pulled is not what the source holds
    ├── StorageError              the lake cannot be read or written
    │   ├── NotFoundError         a run that another stage has to make first
    │   └── CorruptError          bytes differ from their manifest
    ├── BundleError               a bundle and its rows do not fit together
    ├── RegistryError             the ledger refuses
    │   └── NoChampionError       nothing has been published yet
    ├── ClusterError              the Ray cluster cannot do what is asked
    │   ├── CapacityError         a placement that can never be satisfied
    │   └── WatchdogError         waited too long; says for what
    ├── TrainingError             no usable model came out
    │   └── NonFiniteError        a loss or gradient became NaN or infinite
    ├── SalesforceError           the Salesforce org refuses, or cannot be reached
    │   └── LimitError            its limit of API calls is near
    ├── PrivacyError              would show or use what a person has not agreed to, or lacks the key to hide it
    └── AuthError                 a key or token is missing or wrong

Each takes one message: what was got, what was expected, what to do. One string argument keeps them picklable, so they
cross Ray process borders unchanged.
"""

import bisect
import difflib
from collections.abc import Iterable

_COMPARED = 1_000
"""names that are compared letter by letter, at most: some 10 ms"""


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """End of a message about an unknown name: `; did you mean 'churn'?`, or nothing where none is like it.

    `vip` is like `custom.vip`, `P0042` like `product:P0042`. Of very many names those next to it in order are compared,
    and have to be more alike: where many differ in a letter, the first of them is seldom the one that was meant.
    """
    names, cutoff = list(known), 0.7
    near = [name for name in names if name.endswith((f".{got}", f":{got}"))]
    if not near:
        if len(names) > _COMPARED:
            names.sort()
            start = max(0, bisect.bisect(names, got) - _COMPARED // 2)
            names, cutoff = names[start : start + _COMPARED], 0.9
        near = difflib.get_close_matches(got, names, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


class CrmrayError(Exception):
    """Root of all errors that crmray raises on purpose."""

    def __init__(self, message: str):
        super().__init__(message)

    def __str__(self) -> str:
        return str(self.args[0])


class ConfigError(CrmrayError):
    """The org file or a setting is wrong."""


class DataError(CrmrayError):
    """The data cannot be used as it is."""


class SchemaError(DataError):
    """A table lacks a column or has the wrong type."""


class NotEnoughDataError(DataError):
    """Too little data for an honest model."""


class ReconcileError(DataError):
    """What was pulled is not what the source holds."""


class StorageError(CrmrayError):
    """The lake cannot be read or written."""


class NotFoundError(StorageError):
    """A run that another stage has to make first."""


class CorruptError(StorageError):
    """Bytes differ from their manifest."""


class BundleError(CrmrayError):
    """A bundle and its rows do not fit together."""


class RegistryError(CrmrayError):
    """The ledger refuses."""


class NoChampionError(RegistryError):
    """Nothing has been published yet."""


class ClusterError(CrmrayError):
    """The Ray cluster cannot do what is asked."""


class CapacityError(ClusterError):
    """A placement that can never be satisfied."""


class WatchdogError(ClusterError):
    """Waited too long; the message says for what."""


class TrainingError(CrmrayError):
    """No usable model came out."""


class NonFiniteError(TrainingError):
    """A loss or gradient became NaN or infinite."""


class SalesforceError(CrmrayError):
    """The Salesforce org refuses, or cannot be reached."""


class LimitError(SalesforceError):
    """The org's limit of API calls is near."""


class PrivacyError(CrmrayError):
    """Would show or use what a person has not agreed to, or lacks the key to hide it."""


class AuthError(CrmrayError):
    """A key or token is missing or wrong."""
