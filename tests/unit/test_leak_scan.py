from __future__ import annotations

import base64
import gzip
import html
import json
import random
import shutil
import sqlite3
import struct
import urllib.parse
from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console import leak_scan
from console.leak_scan import Leak, Needle, canaries, must_find, scan
from fajma.errors import BugError, InputError, UnavailableError

ALARM = 'ALARME HAUTE · Lit 4 "A.D." · SpO2 86 % (< 90 depuis 20 s) · é/~???'
TOKEN = "k3v9q2m8x7w1"


def found_in(folder: Path, content: bytes, *needles: Needle) -> set[tuple[str, str]]:
    """The labels and encodings that a scan finds in one file."""
    (folder / "file").write_bytes(content)
    return {(leak.needle_label, leak.encoding) for leak in scan([folder / "file"], needles)}


def escape_all(text: str) -> str:
    return "".join(f"\\u{ord(sign):04X}" for sign in text)


@pytest.mark.parametrize(
    ("encoding", "write"),
    [
        ("utf-8", lambda text: text.encode()),
        ("utf-8", lambda text: text.replace("é", "e\u0301").encode()),
        ("utf-8", lambda text: html.escape(text, quote=False).encode()),
        ("json", lambda text: json.dumps(text).encode()),
        ("json", lambda text: json.dumps(text, ensure_ascii=False).encode()),
        ("json", lambda text: json.dumps(text).replace("<", "\\u003c").encode()),
        ("json", lambda text: json.dumps({"log": json.dumps({"body": text})}).encode()),
        ("json", lambda text: json.dumps(text).replace("\\", "\\\\").encode()),
        ("json", lambda text: escape_all(text).encode()),
        ("json", lambda text: escape_all(text).lower().encode()),
        ("utf-16-le", lambda text: text.encode("utf-16-le")),
        ("utf-16-be", lambda text: text.encode("utf-16-be")),
        ("hex", lambda text: text.encode().hex().encode()),
        ("hex-upper", lambda text: text.encode().hex().upper().encode()),
        ("percent", lambda text: urllib.parse.quote(text).encode()),
        ("percent", lambda text: urllib.parse.quote_plus(text).encode()),
        ("percent", lambda text: urllib.parse.quote(text, safe="!'()*;/?:@&=+$,#").encode()),
        ("python-bytes", lambda text: repr(text.encode()).encode()),
    ],
)
@pytest.mark.parametrize("around", [b"", b"x", b"\x00\xff"])
def test_a_text_is_found_in_every_encoding(
    tmp_path: Path, encoding: str, write: Callable[[str], bytes], around: bytes
):
    needle = Needle.for_text(ALARM, label="alarm")

    assert ("alarm", encoding) in found_in(tmp_path, around + write(ALARM) + around, needle)


@given(st.binary(max_size=7), st.binary(max_size=7), st.text(min_size=6, max_size=40))
def test_base64_is_found_whatever_stands_around_it(before: bytes, after: bytes, text: str):
    data = before + text.encode() + after

    def labels(content: bytes) -> set[str]:
        patterns = leak_scan._Patterns([Needle.for_text(text, label="text")])
        return {pattern.encoding for pattern, _ in patterns.search(content)}

    assert "base64" in labels(base64.b64encode(data))
    assert {"base64", "base64url"} & labels(base64.urlsafe_b64encode(data))


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("utf-8", b"37.4291"),
        ("utf-8", b"temp=37.42910"),
        ("utf-8", b"37,4291 \xc2\xb0C"),
        ("utf-8", b'{"value":374291,"decimals":4}'),
        ("utf-8", b"374291"),
        ("utf-16-le", "37.4291".encode("utf-16-le")),
        ("hex", b"37.4291".hex().encode()),
        ("base64", base64.b64encode(b'{"temperature":37.4291}')),
        ("float64", b"\xfb" + struct.pack(">d", 37.4291)),
        ("float64", struct.pack("<d", 37.4291)),
    ],
)
def test_a_number_is_found_however_it_is_written(tmp_path: Path, encoding: str, content: bytes):
    needle = Needle.for_number(Decimal("37.4291"), label="temperature")

    assert ("temperature", encoding) in found_in(tmp_path, content, needle)


def test_a_number_is_found_in_the_fixed_scale_of_readings_too(tmp_path: Path):
    needle = Needle.for_number(Decimal("97.182"), label="spo2")

    assert found_in(tmp_path, b"[971820]", needle) == {("spo2", "utf-8")}
    assert found_in(tmp_path, b"[97182]", needle) == {("spo2", "utf-8")}


@pytest.mark.parametrize("content", [b"1374291", b"3742910", b"0.374291s", b"x374291", b"374291_"])
def test_digits_inside_another_word_are_no_leak(tmp_path: Path, content: bytes):
    needle = Needle.for_number(Decimal("37.4291"), label="temperature")

    assert found_in(tmp_path, content, needle) == set()


@pytest.mark.parametrize("value", ["37.2", "97", "100.0000", "9718.0", "NaN", "Infinity"])
def test_a_number_that_is_not_distinctive_is_refused(value: str):
    with pytest.raises(InputError) as caught:
        Needle.for_number(Decimal(value), label="spo2")

    assert caught.value.code == "not_distinctive"
    assert value not in str(caught.value)


def test_a_text_that_is_too_short_is_refused():
    with pytest.raises(InputError):
        Needle.for_text("Lit 4", label="bed")


def test_neither_a_needle_nor_a_report_shows_the_value(tmp_path: Path):
    needles = [
        Needle.for_number(Decimal("37.4291"), label="temperature"),
        Needle.for_text(ALARM, label="alarm"),
    ]
    (tmp_path / "file").write_text(f"37.4291 {ALARM}")

    shown = repr(needles) + repr(scan([tmp_path], needles)) + repr(canaries(TOKEN))

    for secret in ("37", "4291", "ALARME", TOKEN):
        assert secret not in shown


def test_five_megabytes_of_noise_hold_no_leak(tmp_path: Path):
    chance = random.Random(20)
    needles = [Needle.for_text(ALARM, label="alarm")]
    needles += [
        Needle.for_number(Decimal(chance.randrange(300_001, 1_200_000, 2)) / 10_000, label=f"{n}")
        for n in range(300)
    ]
    noise = chance.randbytes(3 << 20)

    assert found_in(tmp_path, noise, *needles) == set()
    assert found_in(tmp_path, base64.b64encode(noise[: 3 << 19]), *needles) == set()


def test_what_lies_across_two_chunks_is_found_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    needle = Needle.for_text(ALARM, label="alarm")
    monkeypatch.setattr(leak_scan, "_CHUNK_BYTES", 1024)
    data = ALARM.encode()

    for offset in range(4096 - len(data) - 3, 4096 + 3):
        (tmp_path / "file").write_bytes(bytes(offset) + data + bytes(3000))
        (leak,) = scan([tmp_path / "file"], [needle])
        assert (leak.offset, leak.encoding, leak.place) == (offset, "utf-8", "")


@pytest.mark.parametrize(("before", "after"), [(b" ", b" "), (b"1", b" "), (b" ", b"1")])
def test_what_adjoins_an_integer_is_seen_across_two_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes, after: bytes
):
    needle = Needle.for_number(Decimal("37.4291"), label="temperature")
    # As small as it can be, so that the integer meets every edge of a chunk and of what is kept.
    monkeypatch.setattr(leak_scan, "_CHUNK_BYTES", 64)

    for offset in range(1, 150):
        content = b" " * (offset - 1) + before + b"374291" + after + b" " * 150
        expected = {("temperature", "utf-8")} if before == after == b" " else set()
        assert found_in(tmp_path, content, needle) == expected


def test_a_time_of_day_is_no_decimal(tmp_path: Path):
    needle = Needle.for_number(Decimal("37.4291"), label="temperature")

    assert found_in(tmp_path, b'"2026-11-24T09:47:37.429102Z"', needle) == set()
    assert found_in(tmp_path, b'"temperature":37.429102}', needle) == {("temperature", "utf-8")}


def test_each_needle_is_reported_once_for_each_encoding_of_each_file(tmp_path: Path):
    needle = Needle.for_text(ALARM, label="alarm")
    folder = tmp_path / "media" / "ab"
    folder.mkdir(parents=True)
    (folder / "one").write_bytes(b"..." + ALARM.encode() * 3)
    (tmp_path / "two.log").write_bytes(ALARM.encode().hex().encode())
    (tmp_path / "three").write_bytes(b"")

    assert scan([tmp_path], [needle]) == [
        Leak(tmp_path / "two.log", "alarm", "hex", 0),
        Leak(folder / "one", "alarm", "utf-8", 3),
    ]


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path):
    with pytest.raises(InputError) as caught:
        scan([tmp_path / "absent"], [])
    assert caught.value.code == "nothing_to_scan"


# --- compressed files ---


def test_a_rotated_gzip_log_is_decompressed(tmp_path: Path):
    needle = Needle.for_text(ALARM, label="alarm")
    log = tmp_path / "homeserver.log.1.gz"
    log.write_bytes(gzip.compress(b"first\n") + gzip.compress(b"second " + ALARM.encode()))

    (leak,) = scan([tmp_path], [needle])

    assert leak == Leak(log, "alarm", "utf-8", len(b"first\nsecond "), "decompressed")


def test_a_gzip_log_that_is_cut_off_is_an_error(tmp_path: Path):
    (tmp_path / "log.gz").write_bytes(gzip.compress(random.Random(1).randbytes(1000))[:-20])

    with pytest.raises(UnavailableError) as caught:
        scan([tmp_path], [])
    assert caught.value.code == "unreadable"


def test_media_that_only_begins_like_gzip_or_zstd_is_read_raw(tmp_path: Path):
    needle = Needle.for_text(ALARM, label="alarm")
    (tmp_path / "upload").write_bytes(b"\x1f\x8b" + ALARM.encode())

    assert [leak.place for leak in scan([tmp_path], [needle])] == [""]


def stored_zstd(content: bytes) -> bytes:
    """A zstd frame (RFC 8878) of one raw block in a window of 1 KB, without a checksum."""
    header = b"\x28\xb5\x2f\xfd" + b"\x00\x00"
    return header + (len(content) << 3 | 1).to_bytes(3, "little") + content


def test_a_rotated_zstd_log_is_decompressed_or_the_missing_program_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    needle = Needle.for_text(ALARM, label="alarm")
    (tmp_path / "log.zst").write_bytes(stored_zstd(ALARM.encode()))

    if shutil.which("zstd"):
        assert {leak.place for leak in scan([tmp_path], [needle])} == {"", "decompressed"}
        (tmp_path / "log.zst").write_bytes(stored_zstd(ALARM.encode())[:-5])
        with pytest.raises(UnavailableError) as caught:
            scan([tmp_path], [needle])
        assert caught.value.code == "unreadable"

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError) as caught:
        scan([tmp_path], [needle])
    assert caught.value.code == "program_missing"


# --- SQLite ---


def test_a_text_cut_in_two_by_sqlite_pages_is_found(tmp_path: Path):
    needle = Needle.for_text(ALARM, label="alarm")
    file = tmp_path / "homeserver.db"
    # Move the text along until a page boundary cuts it.
    for filling in range(600, 4700, 40):
        file.unlink(missing_ok=True)
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("PRAGMA page_size = 4096")
            database.execute("PRAGMA synchronous = OFF")
            database.execute('CREATE TABLE "event ""json" (id INTEGER PRIMARY KEY, json TEXT)')
            database.execute(
                'INSERT INTO "event ""json" VALUES (1, ?), (2, ?)',
                ("harmless", "." * filling + ALARM + "." * (13_000 - filling)),
            )
        if ALARM.encode() not in file.read_bytes():
            break
    else:
        pytest.fail("no filling put the text across two pages")

    assert scan([tmp_path], [needle]) == [Leak(file, "alarm", "utf-8", 2, 'event "json.json')]


def test_numbers_in_sqlite_columns_are_found(tmp_path: Path):
    needles = [
        Needle.for_number(Decimal("37.4291"), label="temperature"),
        Needle.for_number(Decimal("97.1823"), label="spo2"),
    ]
    with closing(sqlite3.connect(tmp_path / "db")) as database, database:
        database.execute("CREATE TABLE vitals (t, s, n)")
        database.execute("INSERT INTO vitals VALUES (37.4291, 971823, NULL)")

    leaks = scan([tmp_path], needles)

    assert {(leak.needle_label, leak.place) for leak in leaks if leak.place} == {
        ("temperature", "vitals.t"),
        ("spo2", "vitals.s"),
    }
    assert ("temperature", "float64", "") in {
        (leak.needle_label, leak.encoding, leak.place) for leak in leaks
    }


def test_what_is_only_in_the_write_ahead_log_is_found_and_nothing_is_changed(tmp_path: Path):
    needle = Needle.for_text(ALARM, label="alarm")
    file = tmp_path / "homeserver.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE messages (body BLOB)")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.execute("INSERT INTO messages VALUES (?)", (ALARM.encode("utf-16-be"),))
        database.commit()
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

        leaks = scan([tmp_path], [needle])

        assert {(leak.path.name, leak.encoding, leak.place) for leak in leaks} == {
            ("homeserver.db", "utf-16-be", "messages.body"),
            ("homeserver.db-wal", "utf-16-be", ""),
        }
        after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        for name in ("homeserver.db", "homeserver.db-wal"):
            assert after[name] == before[name]


def test_a_database_at_rest_is_left_without_new_files(tmp_path: Path):
    needle = Needle.for_text(ALARM, label="alarm")
    file = tmp_path / "homeserver.db"
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE VIRTUAL TABLE search USING fts4 (words)")
        database.execute("INSERT INTO search VALUES (?)", (ALARM,))

    leaks = scan([tmp_path], [needle])

    assert {leak.place for leak in leaks} == {"", "search_content.c0words"}
    assert list(tmp_path.iterdir()) == [file]


def test_a_broken_database_is_an_error(tmp_path: Path):
    (tmp_path / "db").write_bytes(b"SQLite format 3\x00" + b"\xff" * 5000)

    with pytest.raises(UnavailableError) as caught:
        scan([tmp_path], [])
    assert caught.value.code == "unreadable"


# --- canaries ---


def test_every_canary_is_found_where_a_homeserver_puts_it(tmp_path: Path):
    planted = canaries(TOKEN)
    with closing(sqlite3.connect(tmp_path / "homeserver.db")) as database, database:
        database.execute("CREATE TABLE event_json (json TEXT)")
        for canary in planted:
            if canary.text is None:
                (tmp_path / canary.encoding).write_bytes(canary.planted)
            else:
                event = json.dumps({"content": {"body": canary.text}}, ensure_ascii=False)
                database.execute("INSERT INTO event_json VALUES (?)", (event,))

    leaks = scan([tmp_path], [canary.needle for canary in planted])

    must_find(planted, leaks)
    assert {canary.encoding for canary in planted if canary.text is None} == {
        "utf-16-le",
        "utf-16-be",
    }


def test_every_canary_is_found_in_a_dump_that_doubles_backslashes(tmp_path: Path):
    planted = [canary for canary in canaries(TOKEN) if canary.text is not None]
    rows = [json.dumps({"body": canary.text}).replace("\\", "\\\\") for canary in planted]
    (tmp_path / "dump.sql").write_text("COPY event_json FROM stdin;\n" + "\n".join(rows))

    must_find(planted, scan([tmp_path], [canary.needle for canary in planted]))


def test_each_canary_is_found_in_its_own_encoding_only(tmp_path: Path):
    planted = canaries(TOKEN)
    needles = [canary.needle for canary in planted]

    for canary in planted:
        found = found_in(tmp_path, canary.planted, *needles)
        expected = {"html": "utf-8", "json-all": "json"}.get(
            canary.encoding, canary.encoding.split("+")[0]
        )
        assert found == {(canary.needle.label, expected)}


def test_a_scan_that_misses_a_canary_is_not_to_be_trusted():
    planted = canaries(TOKEN)
    leaks = [Leak(Path("x"), canary.needle.label, "utf-8", 0) for canary in planted[1:]]

    with pytest.raises(BugError, match=planted[0].encoding) as caught:
        must_find(planted, leaks)
    assert caught.value.code == "scan_blind"


@pytest.mark.parametrize("token", ["", "short", "with space and more", "é" * 20])
def test_a_token_that_is_not_plain_is_refused(token: str):
    with pytest.raises(InputError):
        canaries(token)
