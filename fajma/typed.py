"""How typed text is read: what is not seen, accents, case and marks do not count. Pure."""

from __future__ import annotations

import re
import unicodedata
from enum import StrEnum
from typing import Final


class UnclearError(Exception):
    """A line that cannot be understood; quotes nothing of it.

    Attributes:
        problem: why; its value is stable and may be logged.
    """

    def __init__(self, problem: StrEnum) -> None:
        super().__init__(problem)
        self.problem = problem


_SENTENCE_MARKS: Final = ".,;:!?…"
_QUOTES: Final = "\"'`()<>\N{ACUTE ACCENT}"  # IPv6 addresses stand in square brackets


def is_blank(character: str) -> bool:
    """White space, and what is not seen at all."""
    return character.isspace() or unicodedata.category(character) == "Cf"


def is_quote(character: str) -> bool:
    """A quotation mark of any language, or a bracket."""
    return character in _QUOTES or unicodedata.category(character) in ("Pi", "Pf")


def trimmed_blanks(text: str) -> str:
    """Without blanks around."""
    start, end = 0, len(text)
    while start < end and is_blank(text[start]):
        start += 1
    while end > start and is_blank(text[end - 1]):
        end -= 1
    return text[start:end]


def trimmed(text: str) -> str:
    """Without blanks and quotation marks around, and without the end of a sentence."""
    start, end = 0, len(text)
    while start < end and (is_blank(text[start]) or is_quote(text[start])):
        start += 1
    while end > start and (
        is_blank(text[end - 1]) or is_quote(text[end - 1]) or text[end - 1] in _SENTENCE_MARKS
    ):
        end -= 1
    return text[start:end]


def words_of(text: str) -> list[str]:
    """The words, each without quotation marks; marks alone are no words."""
    return [word for word in map(trimmed, text.split()) if folded(word) or word == "@"]


def in_order(text: str) -> tuple[tuple[int, int, str], ...]:
    """By what names such as beds are sorted: their numbers by size, so that 4 precedes 10."""
    parts = re.findall(r"[0-9]{1,9}|[^0-9]+", text)
    return tuple(
        (0, int(one), "") if one.isascii() and one.isdigit() else (1, 0, folded(one))
        for one in parts
    )


def folded(word: str) -> str:
    """A word without case, accents, invisible characters and marks around it."""
    apart = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", word).casefold())
    seen = "".join(c for c in apart if unicodedata.category(c) not in ("Mn", "Cf"))
    return re.sub(r"^[\W_]+|[\W_]+$", "", seen)
