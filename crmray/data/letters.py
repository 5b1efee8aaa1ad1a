"""What stands around a letter: the greeting, which names who it was written to, and the end, which names who wrote it.

No list of names is needed: after a greeting or a farewell a word with a capital is a name, unless it is one of the
small words with which sentences begin; in a line or before a comma of its own also one without a capital. A name in
the midst of a sentence is not found here: that is what redaction is for, which knows the names of the account.
English, German, French and Spanish.
"""

from __future__ import annotations

import re

MOST_SIGNED_CHARS = 600
"""at the end of a text, among which its farewell is looked for"""
_SMALL_WORDS = """
i we you he she it they my your our their his her its this that these those the a an there here as at by for from if in
is are was were has have had will would can could do does did not no yes on of or so to with what when where which who
why how please sorry thanks thank unfortunately just all everyone
ich wir sie er es ihr ihre ihren ihrem unser unsere der die das den dem des ein eine einen einem im am an auf aus bei
für in mit nach von zu zum zur wie wenn was wann wo warum ist sind war wird werden hat haben kann können nicht kein
keine ja nein bitte leider danke vielen besten hier alle
je nous vous il elle le la les un une des du de votre vos notre nos ce cette en est sont avec pour par dans merci oui
non voici malheureusement
yo nosotros usted su sus nuestro nuestra el los las lo una unos es son con para por gracias sí aquí
"""
"""with which a sentence begins, or goes on: no names"""
_SMALL = "|".join(_SMALL_WORDS.split())
_CAPITAL = "[A-ZÀ-ÖØ-ÞĀ-ſΑ-ΩЁА-Я]"
_NAME = rf"(?:\[NAME\]|(?:Dr|Mrs?|Ms|Prof|Hr|Fr|St|{_CAPITAL})\.|(?!(?i:{_SMALL})\b){_CAPITAL}[\w'’-]*)"
_BETWEEN = r"(?:and|und|et|y|or|oder|&|von|van|der|den|de|di|da|del|du|la|zu)[ ]+"
_NAMES = rf"{_NAME}(?:[ ]+(?:{_BETWEEN}){{0,2}}{_NAME}){{0,5}}"
_WORD = rf"(?!(?i:{_SMALL})\b)[^\W\d_][\w'’-]*"
"""a name that may be written without a capital"""
_GREETING = re.compile(
    r"\s*(?i:dear|hello|hi|hey|good (?:morning|afternoon|evening|day)|hallo|moin|guten (?:tag|morgen|abend)|liebe[rs]?"
    r"|sehr geehrte[rs]?|bonjour|bonsoir|ch(?:er|ère)s?|hola|buen[oa]s (?:días|tardes)|estimad[oa]s?)"
    rf"(?:(?:[ ]+{_NAMES})?(?:[ ]?[,!:.]|[ ][-–][ ]|[ ]*(?:\n|\Z))"
    rf"|(?:[ ]+{_WORD}){{1,3}}[ ]*(?:[,!:\n]|\Z)"
    rf"|[ ]+{_NAMES}(?=[ ]))"
    rf"\s*(?:{_NAMES}[ ]?[,!.]\s*)?"
)
"""with the names after it, and what ends it: a mark, the line, or the first word that is no name"""
_FAREWELL = (
    r"(?:with )?(?:(?:my |our )?(?:kind|best|warm|many)(?:est)? )?(?:regards|wishes)"
    r"|(?:yours )?(?:sincerely|faithfully|truly)"
    r"|(?:mit )?(?:freundlichen?|besten?|vielen?|lieben?|herzlichen?|schönen?) grü(?:ß|ss)en?|hochachtungsvoll"
    r"|(?:bien )?cordialement|saludos cordiales|un (?:cordial )?saludo|atentamente"
)
_THANKS = (
    r"(?:all the )?best|cheers|(?:many )?thanks(?: (?:again|a lot|so much))?|thank you(?: (?:again|very much|so much))?"
    r"|yours|take care|(?:vielen|besten|herzlichen) dank|danke(?: schön)?|merci|gracias|lg|vg|mfg"
)
"""which end a letter only where names alone follow"""
_EDGE = r"(?:\A|(?<=[.!?…:;,)\]\n]))\s*"
_LINES = rf"(?:\n[ ]*{_WORD}(?:[ ,.]+{_WORD}){{0,4}}[ ]*){{1,3}}"
_END = re.compile(
    rf"(?:{_EDGE}|(?<=\s)(?={_CAPITAL}))(?i:{_FAREWELL})[ ]?[,.!]?(?=\s*(?:\Z|{_NAME}[\s\S]{{0,400}}\Z))"
    rf"|{_EDGE}(?i:{_THANKS})[ ]?[,.!]?(?:\s+{_NAMES}|[ ]*{_LINES})[ ]?[,.!]?\s*\Z"
    rf"|(?:(?<=[.!?…])[ ]*\n|\n[ ]*\n)\s*{_NAME}(?:[ ]+{_NAME}){{0,2}}\s*\Z"
)
"""the farewell and all after it, or a last line of names after a sentence"""


def inner(text: str) -> str:
    """The text without greeting and end; empty where it says nothing else. Line breaks tell most: leave them in."""
    text = in_lines(text).strip()
    greeting = _GREETING.match(text)
    said = text[greeting.end() :] if greeting else text
    end = _END.search(said, max(0, len(said) - MOST_SIGNED_CHARS))
    return said[: end.start()] if end else said


def in_lines(text: str) -> str:
    """One space for many, one empty line for many: expressions that look for an end of them cost their square."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(" ".join(line.split()) for line in text.split("\n")))
