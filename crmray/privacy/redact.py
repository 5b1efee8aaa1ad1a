"""Free text on its way in: mail addresses, phone, card and account numbers and known names become tokens.

    [EMAIL] [PHONE] [CARD] [ACCOUNT] [NAME]

Cards are told from other numbers by the Luhn digit (ISO/IEC 7812-1), bank accounts by the check digits of ISO 13616
(modulo 97). A phone number has an international prefix, or a trunk prefix or an area code that is set apart, or follows
a word such as "call"; order numbers, prices and dates are left alone. Names are looked for as whole words, without
regard to case and accents. Columns are sifted first (RE2), so only rows in which something may stand are looked at one
by one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

EMAIL, PHONE, CARD, ACCOUNT, NAME = "[EMAIL]", "[PHONE]", "[CARD]", "[ACCOUNT]", "[NAME]"
MIN_LETTERS = 3
"""of a part of a name that is looked for on its own"""
_COMMON = frozenset(
    {
        "gmbh", "mbh", "inc", "ltd", "llc", "llp", "plc", "corp", "corporation", "company", "limited", "ohg", "gbr",
        "sarl", "srl", "spa", "sas", "the", "and", "und", "von", "van", "der", "den", "del", "des", "les", "los", "las",
        "group", "holding", "international", "mrs", "mister", "frau", "herr", "dear", "ing", "prof",
    }
)  # fmt: skip
"""parts of names that tell nobody"""

_AT = re.compile(r"@|[(\[]at[)\]]", re.IGNORECASE)
_MAIL = re.compile(  # at most 64 characters before the @ (RFC 5321), or a long run of letters costs its square
    r"(?<![^\W_])[\w.!#$%&'*+/=?^`{|}~-]{1,64}\s?(?:@|[(\[]at[)\]])\s?[\w-]+(?:_DOT_[\w-]+)*_DOT_[^\W\d_][\w-]+".replace(
        "_DOT_", r"(?:\.|\s?[(\[]dot[)\]]\s?)"
    ),
    re.IGNORECASE,
)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}\b", re.IGNORECASE)
_CARD = re.compile(r"(?<![\w-])\d(?:[ -]?\d){12,18}(?![\w-])")
_GAP = re.compile(r"[ -]")
_ODD = str.maketrans(
    {**dict.fromkeys("\u00a0\u2007\u2009\u202f", " "), **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-")}
)
"""spaces and dashes that numbers are typeset with"""
_AREA = r"\(0?\d{1,5}\)"
_PHONE = re.compile(  # the first form is +49 (0)30 12 34 56
    r"(?=[+(\d])(?:(?:(?<![\w+])\+|(?<![\w.,/#+-])(?<!\d[ ])00[ ]?)[1-9]\d{0,2}[ ./-]?(?:\(0\)[ ./-]?)?"
    rf"(?:{_AREA}[ ./-]?)?\d(?:[ ./-]{{0,2}}\d){{5,12}}"
    r"|(?:(?<![\w.,/#+-])(?<!\d[ ])|(?<=(?i:tel|fax|mob)\.))(?:"
    rf"{_AREA}[ ./-]{{0,3}}\d(?:[ ./-]?\d){{4,9}}"  # (555) 123-4567, (030) 123456
    r"|0[1-9]\d{1,4}[ ./-]{1,3}\d(?:[ ./-]?\d){3,9}"  # 030 1234567, 0151-2345678, 030/123 45 67
    r"|0[1-9]\d{7,11}"  # 01512345678
    r"|(?:1[ .-])?[2-9]\d{2}[ .-]\d{3}[ .-]\d{4}"  # 555-123-4567, 1 555.123.4567
    r"|0[1-9](?:[ .-]\d{2}){4}"  # 01 23 45 67 89
    r"|[2-9]\d{2}-\d{4}"  # 555-1234
    r"))(?![\w]|[.,/-]\d)"
)
_MAYBE = (
    r"(?i)@|[(\[]at[)\]]|\d(?:[^0-9A-Za-z\n]{0,4}\d){6}|[A-Z]{2}\d{2}[ -]?[A-Z0-9]{4}"
    r"|(?:fon|phone|tel|call|mobil|cell|fax|handy|whatsapp|sms)[^0-9\n]{0,16}\d{6}"
)
"""RE2: what a text must hold that any pattern finds something in"""
_MAYBE_IBAN, _MAYBE_CARD = r"(?i)[A-Z]{2}\d{2}", r"\d(?:[^0-9A-Za-z\n]{0,4}\d){12}"
"""the same for these two, which few of the texts with a number hold"""
_NUMBERED = re.compile(
    r"\b(?:order|invoice|ticket|case|ref|reference|tracking|bestellung|rechnung|auftrag|sku|id|article|artikel)"
    r"(?:[ -]?(?:no|nr|number|nummer|id))?[.:#]*[ ]*#?$",
    re.IGNORECASE,
)
"""words before a number that is no phone number"""
_CALLED = re.compile(
    r"\b((?:(?:tele)?(?:phone|fon)|tel|call|mobile?|cell|fax|handy|whatsapp|sms)"
    r"(?:[ ]?(?:no|nr|number|nummer|me|us|at|on|is))*[.: ]*)\d{6,14}(?![\w]|[.,-]\d)",
    re.IGNORECASE,
)
"""a run of digits that the word before makes a phone number"""
_RUN = re.compile(r"\d{6}")
_DATE = re.compile(r"^(?:\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{2,4})(?![-./]?\d)")


def patterns(text: str, *, iban: bool = True, card: bool = True) -> str:
    """The text with mail addresses, bank accounts, cards and phone numbers replaced.

    iban, card: False where the text is known to hold none.
    """
    plain = text if text.isascii() else text.translate(_ODD)
    clean = _MAIL.sub(EMAIL, plain) if _AT.search(plain) else plain
    clean = _checked(clean, _IBAN, _is_iban, ACCOUNT) if iban else clean
    clean = _checked(clean, _CARD, _is_card, CARD) if card else clean
    clean = _PHONE.sub(_phone, clean)
    clean = _CALLED.sub(lambda match: match[1] + PHONE, clean) if _RUN.search(clean) else clean
    return text if clean == plain else clean


def _checked(text: str, pattern: re.Pattern[str], holds: Callable[[str], bool], token: str) -> str:
    """The text with the longest beginning of each match replaced that holds: what follows a number may look like more
    of it (the month and the code after a card's number, the next word after an IBAN)."""
    parts, done, at = [], 0, 0
    while match := pattern.search(text, at):
        gaps = [gap.start() for gap in _GAP.finditer(text, match.start(), match.end())]
        stop = next((end for end in (match.end(), *reversed(gaps)) if holds(text[match.start() : end])), None)
        if stop is None:
            at = gaps[0] + 1 if gaps else match.end()
            continue
        parts += [text[done : match.start()], token]
        done = at = stop
    return "".join([*parts, text[done:]]) if parts else text


def _is_iban(text: str) -> bool:
    """By its check digits; letters alone stand in it as a bank's code of four."""
    compact = _GAP.sub("", text).upper()
    if not 15 <= len(compact) <= 34 or any(part.isalpha() and len(part) != 4 for part in _GAP.split(text)):
        return False
    return int("".join(str(int(one, 36)) for one in compact[4:] + compact[:4])) % 97 == 1


def _is_card(text: str) -> bool:
    """By its last digit; groups but the last have four digits or more."""
    digits = [int(one) for one in text if one.isdigit()]
    if not 13 <= len(digits) <= 19 or any(len(part) < 4 for part in _GAP.split(text)[:-1]):
        return False
    doubled = (sum(divmod(2 * one, 10)) for one in digits[-2::-2])
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _phone(match: re.Match[str]) -> str:
    """The token, unless the words before say that it is another number, or it is a date."""
    if _DATE.match(match[0]) or _NUMBERED.search(match.string, max(0, match.start() - 24), match.start()):
        return match[0]
    return PHONE


# -- names -------------------------------------------------------------------------------------------------------------


def fold(text: str) -> str:
    """Lower case, without accents; as long as the text or not: see `_folded` for the places."""
    if text.isascii():
        return text.lower()
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(one for one in plain if not unicodedata.combining(one))


def words_of(names: Iterable[str | None]) -> frozenset[str]:
    """What to look for, folded: the parts of at least three letters; German umlauts in their other spelling as well."""
    found: set[str] = set()
    for name in names:
        for part in re.findall(r"[^\W_]+", name or ""):
            spelled = part.casefold().translate(_UMLAUTS)
            found.update(
                word
                for word in (fold(part), spelled if spelled != part.casefold() else "")
                if len(word) >= MIN_LETTERS and word not in _COMMON and not word.isdigit()
            )
    return frozenset(found)


_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss"})


def names(text: str, words: Iterable[str]) -> str:
    """The text with every whole word replaced that is one of the folded `words`; neighbours become one token."""
    folded = fold(text)
    there = [word for word in words if word in folded]  # of most texts none: nothing more is done for them
    if not there:
        return text
    spans = sorted(span for word in there for span in _spans(folded, word))
    if not spans:
        return text
    places = None if text.isascii() else _places(text)
    parts: list[str] = []
    at = 0
    for start, stop in spans:
        low, high = (start, stop) if places is None else (places[start], places[stop - 1] + 1)
        if low < at:  # the same word by a shorter one and its genitive
            continue
        between = text[at:low]
        if not (parts and between.strip(" ,.-&'") == "" and len(between) <= 3):
            parts += [between, NAME]
        at = high
    return "".join([*parts, text[at:]])


def _spans(folded: str, word: str) -> Iterator[tuple[int, int]]:
    """Where a word stands as a whole one, a genitive s included."""
    start = folded.find(word)
    while start >= 0:
        stop = start + len(word)
        if folded[stop : stop + 1] == "s" and not folded[stop + 1 : stop + 2].isalnum():
            stop += 1
        if not (start and folded[start - 1].isalnum()) and not folded[stop : stop + 1].isalnum():
            yield start, stop
        start = folded.find(word, start + 1)


def _places(text: str) -> list[int]:
    """Position in the text of each character of its folded form; combining marks belong to the letter before."""
    return [place for place, one in enumerate(text) for _ in fold(one)]


# -- columns -----------------------------------------------------------------------------------------------------------


def column(values: pa.ChunkedArray | pa.Array, words: Sequence[Iterable[str] | None] | None = None) -> pa.Array:
    """A text column redacted. words: for each row what `words_of` gave for those that it is about, or None."""
    flat = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    flat = flat.cast(pa.string())
    maybe = pc.match_substring_regex(flat, _MAYBE).fill_null(False).to_numpy(zero_copy_only=False)
    looked = maybe if words is None else maybe | np.fromiter((bool(one) for one in words), bool, len(flat))
    rows = np.flatnonzero(looked & flat.is_valid().to_numpy(zero_copy_only=False))
    if not len(rows):
        return flat
    changed, new = [], []
    texts = flat.take(pa.array(rows))
    ibans, cards = (pc.match_substring_regex(texts, one).to_pylist() for one in (_MAYBE_IBAN, _MAYBE_CARD))
    for row, text, iban, card in zip(rows.tolist(), texts.to_pylist(), ibans, cards, strict=True):
        clean = patterns(text, iban=iban, card=card) if maybe[row] else text
        own = words[row] if words is not None else None
        clean = names(clean, own) if own else clean
        if clean is not text:
            changed.append(row)
            new.append(clean)
    if not changed:
        return flat
    mask = np.zeros(len(flat), bool)
    mask[changed] = True
    return pc.replace_with_mask(flat, pa.array(mask), pa.array(new, pa.string()))
