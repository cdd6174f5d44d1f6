"""Names of staff, fit to be shown beside each other: none hides or imitates anything. Pure.

A name is for people to read; what identifies somebody is the account.
"""

from __future__ import annotations

import unicodedata
from typing import Final

from confusable_homoglyphs import confusables

from fajma.errors import InputError
from fajma.language import hides_something
from fajma.store.people import MAX_NAME

_BETWEEN_LETTERS: Final = frozenset(" -'.\N{HYPHEN}\N{RIGHT SINGLE QUOTATION MARK}")

# Shapes that ASCII has twice (Unicode Technical Standard 39, confusables.txt; "vv" is ours).
_ALIKE: Final = str.maketrans({"1": "l", "|": "l", "0": "O"})
_PAIRS: Final = (("rn", "m"), ("vv", "w"))


def checked_name(name: str) -> str:
    """A person's name in its one spelling.

    Raises:
        InputError: ``name_invalid``, with the rule that is broken.
    """
    normal = " ".join(unicodedata.normalize("NFC", name).split())
    if hides_something(normal):
        raise _invalid("this name has invisible characters: type it anew")
    if len(normal) > MAX_NAME:
        raise _invalid(f"this name is too long: at most {MAX_NAME} letters")
    if not any(letter.isalpha() for letter in normal):
        raise _invalid("a name has letters")
    if not all(_is_letter(letter) or letter in _BETWEEN_LETTERS for letter in normal):
        raise _invalid("a name has letters, blanks, hyphens, apostrophes and dots only")
    alphabets = {unicodedata.name(one, "?").split()[0] for one in normal if one.isalpha()}
    if len(alphabets - {"MODIFIER"}) > 1:
        raise _invalid("this name has letters of two alphabets, some of which look alike: use one")
    return normal


def look_alike(one: str, other: str) -> bool:
    """Whether an eye may take one name for the other."""
    return bool(_skeletons(one) & _skeletons(other))


def _skeletons(name: str) -> frozenset[str]:
    """What is left of a name for an eye that sees neither accents, case, blanks nor alphabets.

    Letters of other alphabets that look like Latin ones stand for these (Unicode Technical
    Standard 39, confusables). There are two: of the letters, and of their shapes, for which a
    capital ``I`` is an ``l``; but not the ``i`` of Fali, nor the ``I`` of FALI.
    """
    latin = "".join(_latin(letter) for letter in name)
    words = (one if one.isupper() else one.replace("I", "l") for one in latin.split())
    shapes = _bare("".join(words).translate(_ALIKE))
    for pair, single in _PAIRS:
        shapes = shapes.replace(pair, single)
    return frozenset({_bare(latin), shapes})


def _bare(text: str) -> str:
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(_latin(letter) for letter in apart if letter.isalnum())


def _latin(letter: str) -> str:
    if letter.isascii():
        return letter
    alike = confusables.is_confusable(letter, greedy=True, preferred_aliases=["LATIN"])
    shapes = [shape["c"] for one in alike or () for shape in one["homoglyphs"]]
    return next((one for one in shapes if one.isascii() and one.isalnum()), letter)


def _is_letter(character: str) -> bool:
    """A letter, or a mark on one."""
    return unicodedata.category(character)[0] in "LM"


def _invalid(message: str) -> InputError:
    return InputError(message, code="name_invalid")
