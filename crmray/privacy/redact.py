"""Free text on its way in: mail addresses, phone, card and account numbers and known names become tokens.

    [EMAIL] [PHONE] [CARD] [ACCOUNT] [NAME]

Cards are told from other numbers by the Luhn digit (ISO/IEC 7812-1), bank accounts by the check digits of ISO 13616
(modulo 97). A phone number has an international prefix, or a trunk prefix or an area code that is set apart, or follows
a word such as "call"; order numbers, prices and dates are left alone. Names are looked for as whole words, without
regard to case and accents. Columns are sifted first (RE2), so only rows in which something may stand are looked at one
by one.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

EMAIL, PHONE, CARD, ACCOUNT, NAME = "[EMAIL]", "[PHONE]", "[CARD]", "[ACCOUNT]", "[NAME]"
MIN_LETTERS = 3
"""of a part of a name that is looked for on its own"""
REPEATED = 4
"""rows for each distinct text from which on it pays to find out which texts may hold a name at all"""
BLOCK_ROWS = 8 * 1024
"""whose texts stand in memory as Python strings at once"""
_COMMON = frozenset(
    {
        "gmbh", "mbh", "inc", "ltd", "llc", "llp", "plc", "corp", "corporation", "company", "limited", "ohg", "gbr",
        "sarl", "srl", "spa", "sas", "the", "and", "und", "von", "van", "der", "den", "del", "des", "les", "los", "las",
        "group", "holding", "international", "mrs", "mister", "frau", "herr", "dear", "ing", "prof",
    }
)  # fmt: skip
"""parts of names that tell nobody"""

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
_SIEVES = {
    "mail": r"(?i)@|[(\[]at[)\]]", "iban": r"(?i)[A-Z]{2}\d{2}", "card": r"\d(?:[^0-9A-Za-z\n]{0,4}\d){12}",
    "called": r"\p{Nd}{6}",
}  # fmt: skip
"""the same for these, which few of the texts with a number hold; keywords of `patterns`"""
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


def patterns(text: str, *, mail: bool = True, iban: bool = True, card: bool = True, called: bool = True) -> str:
    """The text with mail addresses, bank accounts, cards and phone numbers replaced.

    mail, iban, card: False where the text is known to hold none; called: the same of runs of six digits.
    """
    plain = text if text.isascii() else text.translate(_ODD)
    clean = _MAIL.sub(EMAIL, plain) if mail else plain
    clean = _checked(clean, _IBAN, _is_iban, ACCOUNT) if iban else clean
    clean = _checked(clean, _CARD, _is_card, CARD) if card else clean
    clean = _PHONE.sub(_phone, clean)
    if called and _RUN.search(clean):  # none may be left by now
        clean = _CALLED.sub(lambda match: match[1] + PHONE, clean)
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
    parts = {part for name in names for part in _PART.findall(name or "")}
    return frozenset(word for part in parts for word in _spellings(part))


@functools.lru_cache(maxsize=50_000)  # first names and legal forms repeat
def _spellings(part: str) -> tuple[str, ...]:
    """What to look for of one part of a name."""
    spelled = part.casefold().translate(_UMLAUTS)
    words = (fold(part), spelled if spelled != part.casefold() else "")
    return tuple(word for word in words if len(word) >= MIN_LETTERS and word not in _COMMON and not word.isdigit())


_PART = re.compile(r"[^\W_]+")
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss"})


def names(text: str, words: Iterable[str], folded: str | None = None) -> str:
    """The text with every whole word replaced that is one of the folded `words`; neighbours become one token.

    folded: `fold(text)`, where it is known.
    """
    folded = fold(text) if folded is None else folded
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
    return [place for place, one in enumerate(text) for _ in (one if one.isascii() else fold(one))]


# -- columns -----------------------------------------------------------------------------------------------------------


def column(values: pa.ChunkedArray | pa.Array, words: pa.Array | None = None) -> pa.Array:
    """A text column redacted. words: for each row what `words_of` gave for those that it is about, spaces between.

    Each distinct text of a block of rows is sifted and searched for patterns once: subjects and templates repeat.
    """
    flat = (values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values).cast(pa.string())
    starts = range(0, max(1, len(flat)), BLOCK_ROWS)
    return pa.concat_arrays(
        [_block(flat.slice(at, BLOCK_ROWS), None if words is None else words.slice(at, BLOCK_ROWS)) for at in starts]
    )


def _block(texts: pa.StringArray, words: pa.Array | None) -> pa.StringArray:
    coded = texts.dictionary_encode()
    clean = _without_patterns(coded.dictionary)
    named = _named(clean, coded.indices, words) if words is not None else {}
    found = clean.take(coded.indices)
    return _replaced(found, named) if named else found


def _without_patterns(texts: pa.StringArray) -> pa.StringArray:
    """Texts without nulls, with what any pattern finds replaced."""
    rows = np.flatnonzero(pc.match_substring_regex(texts, _MAYBE).to_numpy(zero_copy_only=False))
    some = texts.take(pa.array(rows))
    sifted = [pc.match_substring_regex(some, one).to_pylist() for one in _SIEVES.values()]
    clean = {}
    for row, text, *may in zip(rows.tolist(), some.to_pylist(), *sifted, strict=True):
        new = patterns(text, **dict(zip(_SIEVES, may, strict=True)))
        if new is not text:
            clean[row] = new
    return _replaced(texts, clean) if clean else texts


def _named(texts: pa.StringArray, codes: pa.Array, words: pa.Array) -> dict[int, str]:
    """Row -> text with the names replaced, for the rows in whose text one of its words stands.

    codes: number of each row's text; words: as for `column`.
    """
    coded = words.dictionary_encode()
    words_of_owner = coded.dictionary.to_pylist()
    numbers, owners = (one.fill_null(-1).to_numpy() for one in (codes, coded.indices))
    told = texts.to_pylist()
    folded = [fold(text) for text in told]
    looked = (numbers >= 0) & (owners >= 0)
    if len(told) * REPEATED < len(codes):
        looked[looked] = _may_name(folded, set(" ".join(words_of_owner).split()))[numbers[looked]]
    rows = np.flatnonzero(looked)
    found = {}
    for row, number, owner in zip(rows.tolist(), numbers[rows].tolist(), owners[rows].tolist(), strict=True):
        text, own = folded[number], words_of_owner[owner].split()
        for word in own:
            if word in text:
                found[row] = names(told[number], own, text)
                break
    return found


def _may_name(folded: Sequence[str], words: Iterable[str]) -> np.ndarray:
    """Mask of the folded texts of which a part is one of the words, or its genitive."""
    parts = set(_PART.findall(" ".join(words)))
    parts |= {f"{one}s" for one in parts}
    return np.array([not parts.isdisjoint(_PART.findall(text)) for text in folded], bool)


def _replaced(texts: pa.StringArray, new: Mapping[int, str]) -> pa.StringArray:
    """Texts with those of some rows replaced; new: by row, ascending."""
    mask = np.zeros(len(texts), bool)
    mask[list(new)] = True
    return pc.replace_with_mask(texts, pa.array(mask), pa.array(list(new.values()), pa.string()))
