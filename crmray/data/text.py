"""What a person wrote, out of what a mail program made of it: markup, quoted replies and signatures go.

`clean` keeps the words in their order, in whatever language and script: HTML becomes its text, an emoji its Unicode
name (a vocabulary that never saw 😡 knows "pouting face"), compatibility forms their plain letters (NFKC). A text that
is nothing but quotes or a signature is kept whole: then that is what was said.
"""

from __future__ import annotations

import html
import re
import unicodedata
from functools import cache

import pyarrow as pa

from crmray.data import letters

MAX_CHARS = 8_000
"""of a cleaned text; of a longer one the beginning is kept, where people say what they want"""
MAX_RAW_CHARS = 200_000
"""of a text before cleaning: a mail with a thousand pictures in it is not read to its end"""
_TAG = re.compile(r"<[/!?]?[a-zA-Z\[][^<>]{0,2000}>")
_MARKUP = re.compile(_TAG.pattern + r"|<!--|&(?:#\w{1,8}|[a-zA-Z]{2,8});")
_INLINE_FILE = re.compile(r"data:[\w.+/-]{1,100};base64,[\w+/=%]*")
"""a picture in the midst of HTML: longer than any tag, and than all that is said"""
_UNSEEN = [
    (re.compile(rf"<{name}\b[^<>]{{0,2000}}>", re.IGNORECASE), re.compile(rf"</{name}\s*>", re.IGNORECASE))
    for name in ("script", "style", "head", "title", "blockquote")
]
_UNSEEN.append((re.compile("<!--"), re.compile("-->")))
"""beginning and end of what a reader does not see, or did not write"""
_SEEN_MARKS = re.compile(r"<!--\[if[^<>]{0,200}>\s*<!--+>|<!--\s*<!\[endif\]--+>", re.IGNORECASE)
"""around what Outlook alone does not show: marks, not the beginning of a comment"""
_QUOTED_MARKUP = re.compile(r"<div[^<>]{0,200}gmail_quote", re.IGNORECASE)
_BREAKS = re.compile(r"<(?:br|/?p|/?div|/?tr|/?li|/?h[1-6]|/?table|hr)\b[^<>]{0,2000}>", re.IGNORECASE)
_QUOTED_FROM_HERE = re.compile(
    r"^[ \t]*(?:"
    r"-{2,}\s*(?:original message|forwarded message|ursprüngliche nachricht|message d'origine|mensaje original).*"
    r"|_{10,}[ \t]*"
    r"|on .{4,120}\bwrote:|am .{4,120}\bschrieb\b.{0,80}:|le .{4,120}\ba écrit\s?:|el .{4,120}\bescribió:"
    r"|(?:from|von|de):[ \t].{1,200}\n(?:[ \t]*\S.*\n){0,2}?[ \t]*(?:sent|date|gesendet|datum|envoyé|enviado):.*"
    r")$",
    re.IGNORECASE | re.MULTILINE,
)
_QUOTED_LINE = re.compile(r"^[ \t]*>.*$", re.MULTILINE)
_SIGNATURE = re.compile(
    r"^(?:-- ?|(?:sent|gesendet|envoyé|enviado) (?:from|von|de|desde) (?:my|meinem|mon|mi) .{1,60})$",
    re.IGNORECASE | re.MULTILINE,
)
_FAREWELL = re.compile(
    r"\s*(?:(?:(?:kind|best|warm|many)(?:est)? )?(?:regards|wishes)|(?:yours )?(?:sincerely|faithfully)|cheers"
    r"|(?:mit )?(?:freundlichen?|besten?|viele|liebe) grü(?:ß|ss)en?|cordialement|saludos cordiales)\s*[,.!]?\s*",
    re.IGNORECASE,
)
_MOST_SIGNED = 12
"""lines after a farewell that may be a name, a firm and its address"""
_SPACE = re.compile(r"\s+")
_PICTURE = re.compile("[\u2600-\u27bf\u2b00-\u2bff\U0001f1e6-\U0001faff]")
_DROPPED = re.compile(
    "[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f\u00ad\u034f\u200b-\u200f\u2060\ufe00-\ufe0f\ufeff\U0001f3fb-\U0001f3ff]"
)
"""control characters, soft hyphens, marks of width zero, variants of emoji, and their skin colours:
no business of a model"""


def clean(texts: pa.ChunkedArray | pa.Array, *, anonymous: bool = False) -> pa.Array:
    """Each text cleaned (string); null and what holds no letter, digit or emoji become null.

    anonymous: also without greeting and end, which name two people (crmray.data.letters).
    """
    values = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    values = values.cast(pa.string())
    encoded = values.dictionary_encode()  # the same words are often sent twice
    cleaned = (clean_one(text, anonymous=anonymous) for text in encoded.dictionary.to_pylist())
    known = pa.array([text or None for text in cleaned], pa.string())
    return known.take(encoded.indices)


def clean_one(text: str, *, anonymous: bool = False) -> str:
    """One text cleaned, as in `clean`; empty where nothing was said."""
    text = _INLINE_FILE.sub("", text)[:MAX_RAW_CHARS]
    if _MARKUP.search(text):
        text = _plain(text)
    text = _DROPPED.sub("", text)
    if not text.isascii():
        text = _PICTURE.sub(lambda found: f" {_name(found[0])} ", unicodedata.normalize("NFKC", text))
    text = letters.in_lines(text)
    own = _own_words(text) if "\n" in text else text
    own = letters.inner(own) if anonymous else own
    said = _SPACE.sub(" ", own).strip()[:MAX_CHARS].strip()
    return said if any(map(str.isalnum, said)) else ""


def joined(subject: pa.Array, body: pa.Array) -> pa.Array:
    """Subject and body as one text, a subject that the body repeats once; null where both are."""
    pairs = zip(subject.to_pylist(), body.to_pylist(), strict=True)
    return pa.array([_with_subject(*pair) for pair in pairs], pa.string())


def _with_subject(subject: str | None, body: str | None) -> str | None:
    return f"{subject}. {body}" if subject and body and subject not in body else body or subject


def _plain(text: str) -> str:
    """The text of HTML, a line for each block; what is quoted in it is left out."""
    quote = _QUOTED_MARKUP.search(text)
    text = text[: quote.start()] if quote else text
    text = _SEEN_MARKS.sub("", text)
    for begin, end in _UNSEEN:
        text = _without(text, begin, end)
    return html.unescape(_TAG.sub(" ", _BREAKS.sub("\n", text)))


def _without(text: str, begin: re.Pattern[str], end: re.Pattern[str]) -> str:
    """Without what lies between a beginning and its end; what has no end is kept. Quotes stand within quotes, comments
    and scripts do not nest: theirs ends at the next end.

    Linear, which one expression for both would not be.
    """
    nest = "blockquote" in begin.pattern
    first, *rest = begin.split(text)
    kept, unended, depth = [first], list[str](), 0
    for part in rest:
        ends = [found.end() for found in end.finditer(part)]
        depth = depth + 1 if nest else 1
        if len(ends) >= depth:
            kept.append(part[ends[depth - 1] :])
            unended, depth = [], 0
        else:
            unended.append(part)
            depth -= len(ends)
    return " ".join([*kept, *unended])


def _own_words(text: str) -> str:
    """Without what is quoted and signed; the whole text where nothing else is left."""
    quote = _QUOTED_FROM_HERE.search(text)
    own = text[: quote.start()] if quote else text
    own = _QUOTED_LINE.sub("", own)
    sign = _SIGNATURE.search(own)
    own = own[: sign.start()] if sign else own
    lines = own.rstrip().split("\n")
    tail = range(max(1, len(lines) - 1 - _MOST_SIGNED), len(lines) - 1)
    end = next((number for number in tail if _FAREWELL.fullmatch(lines[number])), len(lines))
    own = "\n".join(lines[:end])
    return own if own.strip() else text


@cache
def _name(picture: str) -> str:
    """Words for an emoji: its Unicode name."""
    return unicodedata.name(picture, "").lower()
