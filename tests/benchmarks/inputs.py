"""The published data sets as files that the org files in `orgs/` read. Splits follow published protocols exactly.

CRMRAY_DATA names the folder with online_retail_II/, iranian_churn/ and beauty/; $CRMRAY_LAKE/input is written.
"""

from __future__ import annotations

import csv
import hashlib
import os
from pathlib import Path


def data_folder() -> Path:
    """Where the published files are."""
    folder = Path(os.environ.get("CRMRAY_DATA", ""))
    if not os.environ.get("CRMRAY_DATA") or not folder.is_dir():
        raise SystemExit("set CRMRAY_DATA to the folder with online_retail_II/, iranian_churn/ and beauty/")
    return folder


def split3(key: str) -> str:
    """train, validation or test by md5 of the key: 70/15/15."""
    h = int(hashlib.md5(key.encode(), usedforsecurity=False).hexdigest(), 16) % 100
    return "train" if h < 70 else "validation" if h < 85 else "test"


def iranian_churn(target: Path) -> None:
    """UCI 563: the first of equal lines, a row number as id, the split by md5 of the raw line."""
    lines = (data_folder() / "iranian_churn" / "Customer_Churn.csv").read_text("utf-8").replace("\r", "").split("\n")
    header = [" ".join(name.split()) for name in lines[0].split(",")]
    distinct = list(dict.fromkeys(line for line in lines[1:] if line))
    parts = [split3(line) for line in distinct]
    assert [parts.count(part) for part in ("train", "validation", "test")] == [2001, 421, 428], "not the published file"
    digits = "".join(str(("train", "validation", "test").index(part)) for part in parts)
    assert hashlib.md5(digits.encode()).hexdigest()[:16] == "15bb84031a6f2111", "not the published file"
    with open(target, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", *header, "split"])
        writer.writerows(
            [i, *line.split(","), part] for i, (line, part) in enumerate(zip(distinct, parts, strict=True))
        )


def beauty(target: Path) -> None:
    """Amazon Beauty, 5-core: one line per (user, item) with its position in the user's sequence."""
    with open(data_folder() / "beauty" / "Beauty.txt") as source, open(target, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item", "position"])
        for line in source:
            user, *items = line.split()
            writer.writerows([user, item, position] for position, item in enumerate(items))
