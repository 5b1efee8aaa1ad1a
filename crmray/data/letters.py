"""What stands around a letter: the greeting, which names who it was written to, and the end, which names who wrote it.

No list of names is needed: beside a greeting or a farewell a word with a capital is a name, unless it is one of the
small words with which sentences begin; so is one without a capital, where no small word follows. A name left is worse
than a word lost, so what might be either goes: "Refund," after "Hi!", "Settings" alone after the last sentence, and all
that follows a farewell. A name in the midst of a letter is not found here: that is what redaction is for, which knows
the names of the account. English, German, French and Spanish.
"""

from __future__ import annotations

import re

MOST_SIGNED_CHARS = 1_000
"""at the end of a text, among which its farewell is looked for"""
_SMALL_WORDS = """
i we you he she it they my your our their his her its this that these those the a an there here as at by for from if in
is are was were has have had will would can could do does did not no yes on of or so to with what when where which who
why how please sorry thanks thank unfortunately just all everyone
don didn doesn isn aren wasn won haven hasn couldn cannot never nothing
ich wir sie er es ihr ihre ihren ihrem unser unsere der die das den dem des ein eine einen einem im am an auf aus bei
für in mit nach von zu zum zur wie wenn was wann wo warum ist sind war wird werden hat haben kann können nicht kein
keine nichts nie ja nein bitte leider danke vielen besten hier alle
je nous vous il elle le la les un une des du de votre vos notre nos ne pas ce cette en est sont avec pour par dans merci
oui non voici malheureusement
yo nosotros usted su sus nuestro nuestra el los las lo una unos es son con para por gracias sí aquí
"""
"""with which a sentence begins, or goes on: no names"""
_ALSO_NAMES = ("will", "can", "an", "das", "elle", "do", "so", "le", "la", "su", "von", "den")
"""small words which with a capital are names as well"""
_SMALL = "|".join(_SMALL_WORDS.split())
_NO_NAME = "|".join(word for word in _SMALL_WORDS.split() if word not in _ALSO_NAMES)
_CAPITAL = "[A-ZÀ-ÖØ-ÞĀ-ſΑ-ΩЁА-Я]"
_NAME = rf"(?:\[NAME\]|(?:Dr|Mrs?|Ms|Prof|Hr|Fr|St|{_CAPITAL})\.|(?!(?i:{_NO_NAME})\b){_CAPITAL}[\w'’-]*)"
_BETWEEN = r"(?:and|und|et|y|or|oder|&|von|van|der|den|de|di|da|del|du|la|zu)[ ]+"
_NAMES = rf"{_NAME}(?:(?:[ ]+(?:{_BETWEEN}){{0,2}}|[ ]?[/|][ ]?){_NAME}){{0,5}}"
_WORD = rf"(?!(?i:{_SMALL})\b)[^\W\d_][\w'’-]*"
"""a name that may be written without a capital"""
_HELLO = (
    r"(?i:dear|hello|hi|hey|greetings|good (?:morning|afternoon|evening|day)|hallo|moin|servus|grüß gott"
    r"|guten (?:tag|morgen|abend)|liebe[rs]?|sehr geehrte[rs]?|bonjour|bonsoir|ch(?:er|ère)s?|hola"
    r"|buen[oa]s (?:días|tardes)|estimad[oa]s?)(?:[ ]+(?:there|again|my))*"
)
_MARK = r"(?:[ ]?[,!?:;.]|[ ][-–][ ]|[ ]?(?:\n|\Z))"
_GREETING = re.compile(
    rf"(?:{_HELLO}(?:"
    rf"{_MARK}\s*(?:(?:{_NAMES}|{_WORD})[ ]?(?:[,!.\n]|\Z)|(?!{_CAPITAL}){_WORD}[ ]{_WORD}[ ]?[,!\n])?"
    rf"|[ ]@?(?:{_NAMES}|{_CAPITAL}[\w'’-]*|{_WORD}(?:[ ]{_WORD}){{0,2}}){_MARK}\s*(?:{_NAMES}[ ]?[,!.])?"
    rf"|[ ]@?{_NAMES}(?=[ ])"
    rf"|[ ]@?{_WORD}(?:[ ]{_WORD}){{0,2}}(?=[ ](?i:{_SMALL})\b)"
    rf"|[ ]@?{_WORD}(?=[ ])"
    r")\s*){1,3}"
)
"""with the names after it, and what ends it: a mark, the line, a small word, or else the second word"""
_LATER_GREETING = re.compile(rf"(?<=[.!?…:)\]\n])\s?{_HELLO}[ ]{_NAMES}(?:[ ]?[,!:.]|(?=\n))")
"""behind a subject or a number of a case"""
_GRUSS = r"gr(?:ü|ue|u)(?:ß|ss)(?:en?)?"
_FAREWELL = (
    r"(?:(?:many )?thanks (?:and|&) |with )?(?:my |our )?(?:kind|best|warm)(?:est)? (?:regards|wishes)"
    r"|yours (?:sincerely|faithfully|truly)"
    rf"|(?:mit )?(?:freundlich|best|viel|lieb|herzlich|schön)(?:e[mnrs]?)? {_GRUSS}|hochachtungsvoll"
    r"|bien cordialement|(?:mes )?salutations distinguées|saludos cordiales|un (?:cordial )?saludo"
)
_SHORT_FAREWELL = (
    r"(?:(?:many )?thanks (?:and|&) )?(?:with )?(?:many )?(?:regards(?!(?<=with regards) to)|wishes)"
    rf"|sincerely|{_GRUSS}|mfg|cordialement|salutations|amicalement|saludos|atentamente"
)
"""which may begin a sentence as well"""
_THANKS = (
    r"cheers|(?:many )?thanks(?: (?:again|a lot|so much))?|thank you(?: (?:again|very much|so much))?"
    r"|take care|have an? \w+ (?:day|evening|weekend)|(?:vielen|besten|herzlichen) dank|danke(?: schön)?"
    r"|merci|gracias|lg|vg|bien à (?:vous|toi)"
)
"""which end a letter only where names alone follow"""
_EDGE = r"(?:\A|(?<=[.!?…:;,)\]\n]))\s*"
_PLACE = rf"(?:{_EDGE}|(?<=\s)(?={_CAPITAL}))"
_SIGNED = rf"(?=\W*\Z|[^\w\n]*\n|\W*(?:\w[^\s.!?]*\s+){{0,3}}\[?{_CAPITAL}|\W*(?:\w[^\s.!?]*\s*){{1,6}}\Z)"
"""after a farewell: nothing, a new line, a capital within four words, or few words in all"""
_FROM = r"(?:(?i:from|the|your|our|von|ihre?|deine?|vos?|votre|de|su)[ ](?:\w+[ ,]+){0,3})"
_LINES = rf"(?:\n{_WORD}(?:[ ,.]+{_WORD}){{0,4}}[ ]?){{1,3}}"
_LAST_NAMES = rf"{_NAME}(?:,?[ ]{_NAME}){{0,2}}"
_LAST_LINES = rf"(?:\n+(?:{_LAST_NAMES}|[^\n]{{0,60}}[\d@\[|][^\n]{{0,60}})){{0,3}}"
"""under a name: of a firm, a telephone, an address"""
_ENDS = [
    rf"{_PLACE}(?i:{_FAREWELL})\b",
    rf"(?:{_PLACE}(?i:{_SHORT_FAREWELL})|(?<=\s)(?i:{_FAREWELL}))\b{_SIGNED}",
    rf"(?:(?:{_EDGE}|(?<=\s))(?i:{_THANKS})|{_EDGE}(?i:(?:all the )?best|yours))\b[ ]?[,.!]?"
    rf"(?:\s+(?:{_FROM}?{_NAMES}|{_WORD}(?:[ ]{_WORD}){{0,2}})|{_LINES})[ ]?[,.!]?\Z",
    rf"{_EDGE}(?:[-–—/~]+[ ]?|(?i:your|ihre?|deine?)[ ]){_NAMES}\W*\Z",
    rf"(?:(?<=[.!?…])\s+|\n\n){_LAST_NAMES}{_LAST_LINES}\Z",
]
_END = re.compile(rf"(?:(?<!\w)|(?=\n))(?:{'|'.join(_ENDS)})")
"""the farewell and all after it, or last words that are names after a sentence; looked for where words begin"""


def inner(text: str) -> str:
    """The text without greeting and end; empty where it says nothing else. Line breaks tell most: leave them in."""
    text = in_lines(text).strip()
    greeting = _GREETING.match(text)
    said = text[greeting.end() :] if greeting else text
    said = _LATER_GREETING.sub(" ", said)
    end = _END.search(said, max(0, len(said) - MOST_SIGNED_CHARS))
    return said[: end.start()] if end else said


def in_lines(text: str) -> str:
    """One space for many, one empty line for many: expressions that look for an end of them cost their square."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(" ".join(line.split()) for line in text.split("\n")))
