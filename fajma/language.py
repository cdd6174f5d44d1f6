"""The languages FAJMA speaks: English message ids, French translations.

``locale/fr.po`` is the only source. It is compiled in memory when this module is imported, so there
is no build step and no compiled file that could be out of date. English needs no file: the message
ids are the English text. A message id must be written out inside the call, for the tests find it
there::

    _ = translator(language).gettext
    _("Bed {bed}").format(bed=bed)
"""

from __future__ import annotations

import unicodedata
from enum import StrEnum
from gettext import GNUTranslations, NullTranslations
from importlib.resources import files
from io import BytesIO
from typing import Final

from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po


class Language(StrEnum):
    """A language a room can be written in; the value is its ISO 639-1 code."""

    FRENCH = "fr"
    ENGLISH = "en"


DEFAULT_LANGUAGE: Final = Language.FRENCH


def _compiled(language: Language) -> GNUTranslations:
    with (files("fajma") / "locale" / f"{language}.po").open("rb") as source:
        catalog = read_po(source, locale=language, abort_invalid=True)
    compiled = BytesIO()
    write_mo(compiled, catalog)
    compiled.seek(0)
    return GNUTranslations(compiled)


_TRANSLATIONS: Final = {
    Language.FRENCH: _compiled(Language.FRENCH),
    Language.ENGLISH: NullTranslations(),
}


def translator(language: Language = DEFAULT_LANGUAGE) -> NullTranslations:
    """The translations of a language, ready to use.

    Args:
        language: French where nothing is said.

    Returns:
        Its ``gettext`` turns a message id into the language's text; ``ngettext`` knows its plurals.
    """
    return _TRANSLATIONS[language]


SEPARATOR: Final = " · "
"""Between the parts of a message of ours."""

_ISOLATE: Final = "\N{FIRST STRONG ISOLATE}"
_END_ISOLATE: Final = "\N{POP DIRECTIONAL ISOLATE}"
_RIGHT_TO_LEFT: Final = frozenset({"R", "AL", "AN"})


# Unicode 15.1, DerivedCoreProperties, Default_Ignorable_Code_Point, those of other categories than
# Cf; and the two blanks that count as symbol and letter: Braille pattern blank, Hangul fillers.
_UNSEEN: Final = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
) | frozenset(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))


def hides_something(text: str) -> bool:
    """Whether a text has what nobody sees: control, format, bidirectional or blank characters.

    A plain space is not one of them.
    """
    return any(
        character in _UNSEEN or (unicodedata.category(character)[0] in "CZ" and character != " ")
        for character in text
    )


def shown(text: str, longest: int) -> str:
    """Typed text, made unable to disturb the message around it.

    Control, format and bidirectional characters, and our separator, are dropped; blanks are one
    space; what runs from right to left is isolated. A long text loses its middle, for beds often
    differ only at the end. Empty becomes ``?``.
    """
    normal = unicodedata.normalize("NFC", text)
    spaced = (" " if c.isspace() or c == SEPARATOR.strip() else c for c in normal)
    shown = "".join(c for c in spaced if unicodedata.category(c)[0] != "C")
    words = " ".join(shown.split())
    if len(words) > longest:
        head = longest // 2
        words = f"{words[:head]}…{words[head + 1 - longest :]}"
    if any(unicodedata.bidirectional(c) in _RIGHT_TO_LEFT for c in words):
        return f"{_ISOLATE}{words}{_END_ISOLATE}"
    return words or "?"
