"""The languages FAJMA speaks: English message ids, French translations.

``locale/fr.po`` is the only source. It is compiled in memory when this module is imported, so there
is no build step and no compiled file that could be out of date. English needs no file: the message
ids are the English text. A message id must be written out inside the call, for the tests find it
there::

    _ = translator(language).gettext
    _("Bed {bed}").format(bed=bed)
"""

from __future__ import annotations

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
