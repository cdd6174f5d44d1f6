"""Look for values that must not be there: in databases, journals, media, logs and dumps.

The scan knows what software commonly does to a text on its way to a disk: UTF-8 (composed or not),
HTML and JSON escapes (also JSON inside JSON), UTF-16, hexadecimal, base64 at any alignment,
percent-encoding, Python's ``repr`` of bytes, and for numbers other decimal marks, scaled integers
and IEEE 754 doubles. Files are read raw; gzip and zstd files also decompressed; SQLite files also
through SQLite, so that a text cut in two by its pages is found. Inside other data nothing is
decompressed (zlib streams, archives), and ciphertext is of course opaque. A PostgreSQL cluster
compresses long values, so scan a plain-text dump of it.

A scan that finds nothing proves something only if it could have found it: plant ``canaries`` and
ask ``must_find``. Reports name labels, never the values.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import os
import re
import shutil
import sqlite3
import struct
import subprocess
import unicodedata
import urllib.parse
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import IO, Final, Self

from fajma.errors import BugError, InputError, UnavailableError
from fajma.vitals import MAX_DECIMALS

MIN_TEXT_BYTES: Final = 6
"""A shorter text would be found by chance in the base64 of a few megabytes of ciphertext."""

MIN_DIGITS: Final = 5
"""Significant digits below which a number is not told from any other number."""

_CHUNK_BYTES: Final = 1 << 20
_HEAD_BYTES: Final = 5  # every pattern is at least this long
_MIN_BASE64_CHARS: Final = 7
_JSON_LEVELS: Final = 3  # JSON inside JSON inside the escapes of a dump
_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_SQLITE_MAGIC: Final = b"SQLite format 3\x00"
_ALNUM: Final = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_")
_IN_TIME_OF_DAY: Final = re.compile(rb"[0-9]{2}:[0-9]{2}:$")  # what follows are its seconds
_TIME_BYTES: Final = 6
_BEFORE_INTEGER: Final = _ALNUM | frozenset(b".")  # a log's fraction of a second is no integer


@dataclass(frozen=True, slots=True)
class Needle:
    """Something to search for.

    Attributes:
        label: what reports call it; must not give the value away.
        spellings: texts, any of which is the value.
        integers: runs of digits that count only where no letter or digit adjoins.
        doubles: eight bytes of IEEE 754.
    """

    label: str
    spellings: tuple[str, ...] = field(repr=False)
    integers: tuple[str, ...] = field(default=(), repr=False)
    doubles: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def for_text(cls, text: str, *, label: str) -> Self:
        """Search for a text.

        Raises:
            InputError: it is shorter than ``MIN_TEXT_BYTES``.
        """
        if len(text.encode()) < MIN_TEXT_BYTES:
            raise InputError(
                f"The text for {label} is too short to be told from chance: give at least "
                f"{MIN_TEXT_BYTES} characters.",
                code="not_distinctive",
            )
        forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
        spellings = [text, *forms, *(html.escape(form, quote=False) for form in forms)]
        return cls(label, tuple(dict.fromkeys(spellings)))

    @classmethod
    def for_number(cls, value: Decimal, *, label: str) -> Self:
        """Search for a number: ``37.4291``, ``37,4291``, the integer 374291, or a double.

        Raises:
            InputError: it has fewer than ``MIN_DIGITS`` significant digits.
        """
        number = abs(value).normalize() if value.is_finite() else Decimal(0)
        digits = "".join(map(str, number.as_tuple().digits))
        if len(digits) < MIN_DIGITS:
            raise InputError(
                f"The number for {label} is too short to be told from chance: give one with at "
                f"least {MIN_DIGITS} digits that is not round.",
                code="not_distinctive",
            )
        plain = f"{number:f}"
        # As the digits alone, and in the fixed scale that readings are kept in.
        integers = {digits, f"{number.scaleb(MAX_DECIMALS).to_integral_value():f}"}
        if "." not in plain:
            return cls(label, (), tuple(sorted(integers)))
        double = struct.pack(">d", number)
        # The double of a short binary fraction ends in zeros and is no rarer than those.
        doubles = (double, double[::-1]) if any(double[4:]) else ()
        return cls(label, (plain, plain.replace(".", ",")), tuple(sorted(integers)), doubles)


@dataclass(frozen=True, slots=True)
class Leak:
    """One needle in one encoding in one file, where it was first seen.

    Attributes:
        path: the file.
        needle_label: of the needle.
        encoding: how it was written there.
        offset: bytes from the start of the file, after decompression; in a SQLite table the row,
            counted from 1 as SQLite gives them.
        place: ``table.column`` of a SQLite file, ``decompressed``, or empty for the raw file.
    """

    path: Path
    needle_label: str
    encoding: str
    offset: int
    place: str = ""


@dataclass(frozen=True, slots=True)
class Canary:
    """A harmless text to plant where a leak would be, in one encoding.

    Attributes:
        encoding: the encoding that it proves.
        planted: the bytes to plant, e.g. as a media upload.
        needle: what to search for; each canary has its own, so no other encoding finds it.
    """

    encoding: str
    planted: bytes = field(repr=False)
    needle: Needle

    @property
    def text(self) -> str | None:
        """What to post as a message; ``None`` when only a file can carry the bytes."""
        return None if b"\x00" in self.planted else self.planted.decode()


def scan(paths: Iterable[Path], needles: Iterable[Needle]) -> list[Leak]:
    """Search files, and folders with all that is in them.

    A file that disappears meanwhile is passed over (journals come and go); links inside folders
    are followed to files, not to folders.

    Returns:
        Per file, place, needle and encoding the first occurrence, in the order of the files.

    Raises:
        InputError: a given path does not exist.
        UnavailableError: a file cannot be read or decompressed, so the scan would prove nothing.
    """
    patterns = _Patterns(needles)
    leaks: list[Leak] = []
    for given in paths:
        if not given.exists():
            raise InputError(
                f"{given} does not exist: name what the scan is to read.", code="nothing_to_scan"
            )
        for path in _files(given):
            try:
                leaks += _scan_file(path, patterns)
            except FileNotFoundError:
                continue
            except PermissionError as error:
                raise UnavailableError(
                    f"{path} may not be read: run the scan as a user who may.", code="unreadable"
                ) from error
    return leaks


def canaries(token: str) -> tuple[Canary, ...]:
    """What to plant so that every encoding is proven to be found.

    Args:
        token: random letters and digits, at least 12, new for each scan.

    Raises:
        InputError: the token is too short, or not plain.
    """
    if len(token) < 12 or not (token.isascii() and token.isalnum()):  # noqa: PLR2004
        raise InputError(
            "A canary's token needs at least 12 plain letters and digits.", code="bad_token"
        )
    planted: list[tuple[str, Callable[[str], bytes]]] = [
        ("utf-8", lambda text: text.encode()),
        ("html", lambda text: html.escape(text, quote=False).encode()),
        ("json", lambda text: json.dumps(text).encode()),
        ("json-all", lambda text: _escape_all(text).encode()),
        ("utf-16-le", lambda text: text.encode("utf-16-le")),
        ("utf-16-be", lambda text: text.encode("utf-16-be")),
        ("hex", lambda text: text.encode().hex().encode()),
        ("hex-upper", lambda text: text.encode().hex().upper().encode()),
        ("percent", lambda text: urllib.parse.quote(text, safe="").encode()),
        ("python-bytes", lambda text: repr(text.encode()).encode()),
    ]
    for before in range(3):
        planted += [
            (f"base64+{before}", partial(_plant_base64, base64.b64encode, before)),
            (f"base64url+{before}", partial(_plant_base64, base64.urlsafe_b64encode, before)),
        ]
    found = []
    for number, (encoding, write) in enumerate(planted):
        # An accent and signs to escape; the question marks give "/" in base64 at any alignment.
        text = f"{token}{number:02d} é<&>??????"
        found.append(
            Canary(encoding, write(text), Needle.for_text(text, label=f"canary {encoding}"))
        )
    return tuple(found)


def _plant_base64(encode: Callable[[bytes], bytes], before: int, text: str) -> bytes:
    """A text with neighbours on both sides, so that it stands at the wanted alignment."""
    return encode(b"<" * before + text.encode() + b">")


def must_find(planted: Iterable[Canary], leaks: Iterable[Leak]) -> None:
    """Demand that every canary was found.

    Raises:
        BugError: ``scan_blind``: some were not, so the scan's silence about others means nothing.
    """
    seen = {leak.needle_label for leak in leaks}
    missed = [canary.encoding for canary in planted if canary.needle.label not in seen]
    if missed:
        raise BugError(
            f"The leak scan missed what was planted in {', '.join(missed)}: do not trust it.",
            code="scan_blind",
        )


@dataclass(frozen=True, slots=True)
class _Pattern:
    """Bytes that give a needle away.

    Attributes:
        data: the bytes.
        label: of the needle.
        encoding: how it is written.
        bounded: counts only where no letter, digit, point or underscore adjoins.
    """

    data: bytes
    label: str
    encoding: str
    bounded: bool = False


class _Patterns:
    """All patterns of all needles, by their first bytes, so that one pass finds any of them."""

    def __init__(self, needles: Iterable[Needle]) -> None:
        self.by_head: dict[bytes, list[_Pattern]] = {}
        self.longest = _HEAD_BYTES
        for needle in needles:
            for pattern in _write_patterns(needle):
                self.by_head.setdefault(pattern.data[:_HEAD_BYTES], []).append(pattern)
                self.longest = max(self.longest, len(pattern.data))

    def search(
        self, data: bytes, *, start: int = 0, at_end: bool = True
    ) -> Iterator[tuple[_Pattern, int]]:
        """Every occurrence that begins at ``start`` or later.

        Args:
            data: what to search.
            start: bytes before it only tell what adjoins.
            at_end: whether nothing follows ``data``.
        """
        heads = self.by_head
        # One slice and one look-up per byte: about 10 MB/s, however many needles there are.
        hits = [
            position
            for position in range(start, len(data) - _HEAD_BYTES + 1)
            if data[position : position + _HEAD_BYTES] in heads
        ]
        for position in hits:
            for pattern in heads[data[position : position + _HEAD_BYTES]]:
                if not data.startswith(pattern.data, position):
                    continue
                end = position + len(pattern.data)
                if pattern.bounded and (
                    (position > 0 and data[position - 1] in _BEFORE_INTEGER)
                    or (end < len(data) and data[end] in _ALNUM)
                    # Cut here, so that what adjoins is unknown: the next chunk shows it again.
                    or (end == len(data) and not at_end)
                ):
                    continue
                if _IN_TIME_OF_DAY.search(data, max(0, position - _TIME_BYTES), position):
                    continue
                yield pattern, position


def _write_patterns(needle: Needle) -> Iterator[_Pattern]:
    """Every way a needle may be written, each sequence of bytes once."""
    seen: set[bytes] = set()
    written = [
        *((each, name, False) for text in needle.spellings for name, each in _encode(text)),
        *(
            (each, name, name == "utf-8")
            for digits in needle.integers
            for name, each in _encode(digits)
        ),
        *((each, "float64", False) for each in needle.doubles),
    ]
    for data, encoding, bounded in written:
        if data not in seen:
            seen.add(data)
            yield _Pattern(data, needle.label, encoding, bounded=bounded)


def _encode(text: str) -> Iterator[tuple[str, bytes]]:
    """A text in every encoding that the scan knows: ``(name, bytes)``."""
    data = text.encode()
    yield "utf-8", data
    yield "utf-16-le", text.encode("utf-16-le")
    yield "utf-16-be", text.encode("utf-16-be")
    yield "hex", data.hex().encode()
    yield "hex-upper", data.hex().upper().encode()
    for escaped in _json_forms(text):
        yield from (("json", each) for each in _nest(escaped))
    yield from (("python-bytes", each) for each in _nest(repr(data)[2:-1]))
    # What encodeURIComponent, encodeURI and form posts leave as it is differs.
    for safe in ("", "/", "!'()*", "!'()*;/?:@&=+$,#"):
        quoted = urllib.parse.quote(text, safe=safe)
        for form in (quoted, quoted.replace("%20", "+")):
            yield "percent", form.encode()
            yield "percent", _lower_escapes(form).encode()
    for before in range(3):
        inner = _inner_base64(data, before)
        if len(inner) >= _MIN_BASE64_CHARS:
            yield "base64", inner
            yield "base64url", inner.translate(bytes.maketrans(b"+/", b"-_"))


def _json_forms(text: str) -> Iterator[str]:
    """A text inside JSON, as writers differ in what they escape."""
    for plain in (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]):
        yield plain
        # Writers that fear for HTML.
        yield "".join(f"\\u{ord(sign):04x}" if sign in "<>&" else sign for sign in plain)
    yield _escape_all(text)
    # The same with upper-case hex digits.
    yield "".join(sign if sign.isascii() else _escape_all(sign, "04X") for sign in text)
    yield _escape_all(text, "04X")


def _escape_all(text: str, digits: str = "04x") -> str:
    """Every character as a backslash, ``u`` and the four hex digits of its UTF-16 unit."""
    units = struct.unpack(f">{len(text.encode('utf-16-be')) // 2}H", text.encode("utf-16-be"))
    return "".join(f"\\u{unit:{digits}}" for unit in units)


def _nest(escaped: str) -> Iterator[bytes]:
    """An escaped text, and the same inside more JSON, or in a dump that doubles backslashes."""
    forms = {escaped}
    for level in range(_JSON_LEVELS):
        yield from (form.encode() for form in sorted(forms))
        if level < _JSON_LEVELS - 1:
            forms = {
                again
                for form in forms
                for again in (
                    json.dumps(form, ensure_ascii=False)[1:-1],
                    form.replace("\\", "\\\\"),
                )
            }


def _lower_escapes(quoted: str) -> str:
    """The same percent-encoding with lower-case hex digits."""
    first, *rest = quoted.split("%")
    return "%".join([first, *(part[:2].lower() + part[2:] for part in rest)])


def _inner_base64(data: bytes, before: int) -> bytes:
    """The base64 characters of ``data`` alone when ``before`` bytes (mod 3) stand before it."""
    characters = base64.b64encode(bytes(before) + data)
    # Six bits a character: the first ones mix with what precedes, the last with what follows.
    return characters[-(-before * 8 // 6) : (before + len(data)) * 8 // 6]


def _files(given: Path) -> Iterator[Path]:
    if not given.is_dir():
        yield given
        return

    def stop(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(given, onerror=stop):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            # Not sockets, pipes and devices, whose reading would not end.
            if path.is_file():
                yield path


def _scan_file(path: Path, patterns: _Patterns) -> list[Leak]:
    """One file: raw, then what is inside it where we know how to look."""
    with path.open("rb") as file:
        head = file.read(32)
        file.seek(0)
        leaks = _scan_stream(path, "", file, patterns)
    if head.startswith(_GZIP_MAGIC):
        leaks += _scan_gzip(path, patterns)
    elif head.startswith(_ZSTD_MAGIC):
        leaks += _scan_zstd(path, patterns)
    elif head.startswith(_SQLITE_MAGIC):
        leaks += _scan_sqlite(path, head, patterns)
    return leaks


def _scan_stream(
    path: Path, place: str, stream: IO[bytes] | gzip.GzipFile, patterns: _Patterns
) -> list[Leak]:
    """Search a stream of any length; chunks overlap by a pattern and its neighbours."""
    found: dict[tuple[str, str], int] = {}
    kept = b""
    kept_at = 0
    while True:
        chunk = stream.read(_CHUNK_BYTES)
        data = kept + chunk
        # The first kept byte only tells what adjoins.
        start = 1 if kept_at else 0
        for pattern, position in patterns.search(data, start=start, at_end=not chunk):
            found.setdefault((pattern.label, pattern.encoding), kept_at + position)
        if not chunk:
            break
        kept = data[-(patterns.longest + 1) :]
        kept_at += len(data) - len(kept)
    return [Leak(path, label, encoding, at, place) for (label, encoding), at in found.items()]


def _scan_gzip(path: Path, patterns: _Patterns) -> list[Leak]:
    try:
        with gzip.open(path) as stream:
            return _scan_stream(path, "decompressed", stream, patterns)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        return _undecompressed(path, ".gz", error)


def _scan_zstd(path: Path, patterns: _Patterns) -> list[Leak]:
    # Python has zstd from 3.14 on.
    program = shutil.which("zstd")
    if program is None:
        raise UnavailableError(
            f"{path} is compressed by zstd: install the zstd program to have it scanned.",
            code="program_missing",
        )
    with subprocess.Popen(
        [program, "-dcq", "--", path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        if process.stdout is None:
            raise BugError("A pipe was asked for and not given.", code="no_pipe")
        leaks = _scan_stream(path, "decompressed", process.stdout, patterns)
    return leaks if process.returncode == 0 else leaks + _undecompressed(path, ".zst", None)


def _undecompressed(path: Path, suffix: str, error: Exception | None) -> list[Leak]:
    """No leaks when a file only begins like a compressed one; an error when it says it is one."""
    if path.suffix == suffix:
        raise UnavailableError(
            f"{path} cannot be decompressed to its end: wait until it is complete, or remove it.",
            code="unreadable",
        ) from error
    return []


def _scan_sqlite(path: Path, head: bytes, patterns: _Patterns) -> list[Leak]:
    """Search every cell of every table as SQLite reads it, its write-ahead log included.

    Only content that is still in the tables: what is deleted or overwritten is searched raw.
    """
    uses_wal = head[18] == 2  # noqa: PLR2004 - "read version" of the file format
    # Without a log nobody has the database open; "immutable" then keeps us from creating one.
    alone = uses_wal and not path.with_name(f"{path.name}-wal").exists()
    uri = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if alone else ''}"
    leaks: list[Leak] = []
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=30)) as database:
            database.text_factory = bytes
            tables = database.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
                # A virtual table's content is in ordinary tables beside it.
                " AND sql NOT LIKE 'CREATE VIRTUAL%'"
            ).fetchall()
            for (name,) in tables:
                leaks += _scan_table(path, database, name.decode(), patterns)
    except sqlite3.Error as error:
        if not path.exists():
            return leaks
        raise UnavailableError(
            f"{path} cannot be read as a SQLite database ({error.sqlite_errorname}): stop what "
            "writes to it, or remove it.",
            code="unreadable",
        ) from error
    return leaks


def _scan_table(
    path: Path, database: sqlite3.Connection, table: str, patterns: _Patterns
) -> list[Leak]:
    found: dict[tuple[str, str, str], int] = {}
    quoted = table.replace('"', '""')
    cursor = database.execute(f'SELECT * FROM "{quoted}"')  # noqa: S608 - quoted above
    columns = [column[0] for column in cursor.description]
    for number, row in enumerate(cursor, start=1):
        cells = [_cell_bytes(cell) for cell in row]
        # One pass over the whole row; only where it hits, each cell by itself.
        if next(patterns.search(b"\n".join(cells)), None) is None:
            continue
        for column, cell in zip(columns, cells, strict=True):
            for pattern, _ in patterns.search(cell):
                found.setdefault((pattern.label, pattern.encoding, column), number)
    return [
        Leak(path, label, encoding, row_number, f"{table}.{column}")
        for (label, encoding, column), row_number in found.items()
    ]


def _cell_bytes(cell: bytes | float | None) -> bytes:
    if isinstance(cell, bytes):
        return cell
    return b"" if cell is None else str(cell).encode()
