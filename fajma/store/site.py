"""The keys of the site in the database, wrapped by the one in the site key file."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fajma.config import read_secret
from fajma.errors import InputError
from fajma.files import write_private
from fajma.sealing import KEY_BYTES, Key, SiteKey, generate_site_key
from fajma.store.database import Store

_NAME: Final = "site"
_PLACE: Final = "site_secret/site"


async def site_key(store: Store, path: Path) -> SiteKey:
    """The site's keys, opened with the key in its file; made at the very first start.

    Raises:
        InputError: the file is not readable by us alone, is no key, or is not this database's.
    """
    outer = _read(path)
    wrapped = await store.db.fetchval("SELECT wrapped FROM site_secret WHERE name=$1", _NAME)
    if wrapped is None:
        # A database from before this table has everything sealed under the file's own key.
        raw = outer[0] if await _is_used(store) else os.urandom(KEY_BYTES)
        await store.db.execute(
            "INSERT INTO site_secret (name, wrapped) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            _NAME,
            Key(outer[0]).seal(raw, place=_PLACE),
        )
        wrapped = await store.db.fetchval("SELECT wrapped FROM site_secret WHERE name=$1", _NAME)
    return SiteKey(_unwrapped(outer, bytes(wrapped), path))


async def change_site_key(store: Store, path: Path) -> None:
    """Put a new key into the site key file, and wrap the site's keys with it.

    Whatever dies when, the file opens the database: it holds both keys in between. Processes that
    run go on, for they have the keys that are wrapped.

    Raises:
        InputError: as ``site_key``; or another change is under way (``site_key_changing``).
    """
    with _alone(path):
        await _change_site_key(store, path)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two that change one file would each overwrite what the other needs."""
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InputError(
            "somebody changes the site key at this moment: look at it again when he is done",
            code="site_key_changing",
        ) from None
    finally:
        os.close(lock)


async def _change_site_key(store: Store, path: Path) -> None:
    await site_key(store, path)  # so that there is something to wrap
    old = _read(path)
    new = generate_site_key()
    both = [new, *(base64.b64encode(one).decode() for one in old)]
    write_private(path, "\n".join(both) + "\n")
    async with store.transaction() as connection:
        wrapped = await connection.fetchval("SELECT wrapped FROM site_secret WHERE name=$1", _NAME)
        raw = _unwrapped(old, bytes(wrapped), path)
        await connection.execute(
            "UPDATE site_secret SET wrapped=$2 WHERE name=$1",
            _NAME,
            Key(base64.b64decode(new)).seal(raw, place=_PLACE),
        )
    write_private(path, new + "\n")


def check_site_key_file(path: Path) -> None:
    """Say whether the file can be a site key.

    Raises:
        InputError: it cannot.
    """
    _read(path)


def _read(path: Path) -> list[bytes]:
    """The keys in the file: the one in force, and while it is being changed the one before."""
    keys = []
    for line in read_secret(path, purpose="site key").split():
        try:
            keys.append(base64.b64decode(line, validate=True))
        except ValueError:
            raise InputError(f"{path} is not base64", code="site_key_invalid") from None
    if any(len(key) != KEY_BYTES for key in keys):
        raise InputError(
            f"the site key must be {KEY_BYTES} bytes in base64", code="site_key_invalid"
        )
    return keys


def _unwrapped(keys: list[bytes], wrapped: bytes, path: Path) -> bytes:
    for key in keys:
        opened = Key(key).try_open(wrapped, place=_PLACE)
        if opened is not None:
            return opened
    raise InputError(
        f"{path} is not the site key of this database: restore the file from the backup",
        code="site_key_wrong",
    )


async def _is_used(store: Store) -> bool:
    """Whether something was sealed here before."""
    for table in ("patient", "staff", "quarantine", "audit"):
        if await store.db.fetchval(f"SELECT 1 FROM {table} LIMIT 1"):  # noqa: S608 - our own names
            return True
    has_matrix_keys = await store.db.table_exists("crypto_account")
    return has_matrix_keys and bool(await store.db.fetchval("SELECT 1 FROM crypto_account LIMIT 1"))
