"""Which devices get room keys and are listened to, when the homeserver lies about them.

Most tests run with both libraries that encrypt for us: what mautrix shares and what matrix-nio
shares is decided by one judge.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import nio
import pytest
import vodozemac
from mautrix.api import HTTPAPI
from mautrix.client import Client
from mautrix.crypto import PgCryptoStore, RejectKeyShare
from mautrix.types import (
    DeviceID,
    DeviceLists,
    EncryptionAlgorithm,
    IdentityKey,
    Member,
    Membership,
    RequestedKeyInfo,
    RoomEncryptionStateEventContent,
    RoomID,
    TrustState,
    UserID,
)
from nio import MegolmEvent
from nio.crypto import InboundGroupSession

from appservice.cryptographer import ASKED_BY, Cryptographer
from appservice.service import SCHEMAS
from appservice.state import RoomState
from bots.alerts.client import SignedClient
from fajma.config import DatabaseSettings
from fajma.duty import Roster
from fajma.errors import InputError, UnavailableError
from fajma.language import Language
from fajma.store import Records, Store
from fajma.store.people import Role, Staff
from fajma.store.pins import new_epoch
from fajma.store.site import site_key
from fajma.store.wards import Ward, WardId
from fajma.trust import CrossSigningSeeds, signed_devices
from tests.lying_homeserver import (
    Json,
    LyingHomeserver,
    Phone,
    answer_about,
    identity_objects,
    together,
)

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
WARD, ROOM = WardId("medecine-2"), "!medecine-2:clinic.test"
AWA, EVE = "@awa:clinic.test", "@eve:partner.test"
HOST, ALERTS = "@fajma:clinic.test", "@fajma-alerts:clinic.test"
SEEDS, OTHER = CrossSigningSeeds.generate(), CrossSigningSeeds.generate()


class Sender(Protocol):
    """One of our senders in the ward's room."""

    asked_by: str

    async def start(self) -> None:
        """Start, or start again with what is on disk."""

    async def stop(self) -> None:
        """Stop as if the process ended."""

    async def look(self, *users: str) -> None:
        """Ask the homeserver for the devices of users."""

    async def trusted(self, user: str) -> set[str]:
        """Whose devices would get a key now, as the library itself has it."""

    async def speak(self) -> str:
        """Encrypt a message; the Megolm session."""


class MautrixSender:
    """``@fajma``."""

    asked_by = ASKED_BY

    def __init__(self, records: Records, homeserver: LyingHomeserver, _: Path) -> None:
        self._records = records
        self._homeserver = homeserver
        self.changed: list[str] = []

    async def start(self) -> None:
        self.state = RoomState(self._records.store.db)
        api = HTTPAPI(self._homeserver.url, token="token")
        client = Client(mxid=UserID(HOST), device_id=DeviceID("OURS"), api=api)
        keys = PgCryptoStore(HOST, "pickle", self._records.store.db)
        await keys.open()
        await keys.put_device_id(client.device_id)
        self.cryptographer = Cryptographer(
            client,
            keys,
            self.state,
            pins=self._records.pins,
            audience=self._records.audience,
            never_for=(),
            trust_changed=self._on_changed,
            looking=asyncio.Lock(),
        )
        await self.cryptographer.load()
        encrypted = RoomEncryptionStateEventContent(EncryptionAlgorithm.MEGOLM_V1)
        await self.state.set_encryption_info(RoomID(ROOM), encrypted)
        members = {UserID(user): Member(membership=Membership.JOIN) for user in (HOST, AWA, EVE)}
        await self.state.set_members(RoomID(ROOM), members)

    async def _on_changed(self, user: UserID) -> None:
        self.changed.append(user)
        await self.cryptographer.forget_sessions_with(user)

    async def stop(self) -> None:
        await self.cryptographer.client.api.session.close()

    async def look(self, *users: str) -> None:
        await self.cryptographer.look_at(users)

    async def trusted(self, user: str) -> set[str]:
        return {device_id for device_id, _ in await self.cryptographer._trusted_devices(user)}

    async def speak(self) -> str:
        encrypted = await self.cryptographer.encrypt(ROOM, "m.room.message", {"body": "vitals"})
        return str(encrypted["session_id"])


class NioSender:
    """``@fajma-alerts``."""

    asked_by = ALERTS

    def __init__(self, records: Records, homeserver: LyingHomeserver, directory: Path) -> None:
        self._records = records
        self._homeserver = homeserver
        self._directory = directory

    async def start(self) -> None:
        self._directory.mkdir(exist_ok=True, mode=0o700)
        self.client = SignedClient(
            self._homeserver.url,
            ALERTS,
            self._directory,
            pins=self._records.pins,
            audience=self._records.audience,
        )
        self.client.config = replace(self.client.config, pickle_key="pickle")
        self.client.restore_login(ALERTS, "OURS", "token")
        room = nio.MatrixRoom(ROOM, ALERTS, encrypted=True)
        room.members_synced = True
        for user in (ALERTS, AWA, EVE):
            room.add_member(user, user, None)
        self.client.rooms[ROOM] = room
        self.client.olm.update_tracked_users(room)

    async def stop(self) -> None:
        await self.client.close()

    async def look(self, *users: str) -> None:
        for user in users:
            self.client._ask_again_at.pop(user, None)
        self.client.olm.users_for_key_query = set(users)
        await self.client.keys_query()

    async def trusted(self, user: str) -> set[str]:
        devices = self.client.device_store.active_user_devices(user)
        return {device.id for device in devices if device.verified}

    async def speak(self) -> str:
        sent = await self.client.room_send(ROOM, "m.room.message", {"body": "alarm"})
        assert isinstance(sent, nio.RoomSendResponse)
        return self._homeserver.sessions[-1]


class Scene:
    """A ward's room with one nurse of ours and one doctor of a partner, and who speaks there."""

    def __init__(self, records: Records, homeserver: LyingHomeserver, sender: Sender) -> None:
        self.records = records
        self.homeserver = homeserver
        self.sender = sender
        self.phone = self.new_phone(AWA, "PHONE")
        self.tablet = self.new_phone(EVE, "TABLET")
        self.shows(self.honest())

    def new_phone(self, user: str, device_id: str) -> Phone:
        phone = Phone(user, device_id)
        self.homeserver.phones.append(phone)
        return phone

    def honest(self, *more_of_awa: Json) -> Json:
        return together(
            answer_about(AWA, SEEDS, self.phone.published(SEEDS), *more_of_awa),
            answer_about(EVE, OTHER, self.tablet.published(OTHER)),
        )

    def shows(self, answer: Json) -> None:
        self.homeserver.answer = answer

    async def trusted_after(self, answer: Json, user: str = AWA) -> set[str]:
        self.shows(answer)
        await self.sender.look(AWA, EVE)
        return await self.sender.trusted(user)

    async def readers(self) -> set[str]:
        """Whose devices can read a message that is encrypted now."""
        return self.homeserver.readers(await self.sender.speak())

    async def restart(self) -> None:
        await self.sender.stop()
        await self.sender.start()

    async def block(self, *device_ids: str) -> None:
        async with self.records.store.transaction() as connection:
            await self.records.pins.block(connection, AWA, device_ids)

    async def leaves(self) -> None:
        person = await self.records.people.get(AWA)
        assert person is not None
        async with self.records.store.transaction() as connection:
            await self.records.people.put(connection, replace(person, left_at=NOW))
            await new_epoch(connection)


@pytest.fixture(params=[MautrixSender, NioSender], ids=["mautrix", "nio"])
async def scene(
    request: pytest.FixtureRequest, tmp_path: Path, site_key_file: Path
) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        url = f"sqlite://{tmp_path}/store/fajma.db"
        store = await Store.open(DatabaseSettings(url=url), also_upgrade=SCHEMAS)
        stack.push_async_callback(store.close)
        records = Records(store, await site_key(store, site_key_file))
        await records.wards.add(Ward(WARD, ROOM, Language.FRENCH, "Africa/Dakar", Roster()))
        async with store.transaction() as connection:
            for account in (AWA, EVE):
                person = Staff(account, account[1:4], Role.NURSE, WARD, Language.FRENCH, NOW)
                await records.people.put(connection, person)
        homeserver = await stack.enter_async_context(LyingHomeserver())
        sender: Sender = request.param(records, homeserver, tmp_path / "crypto")
        await sender.start()
        found = Scene(records, homeserver, sender)
        yield found
        await sender.stop()


# --- an answer with nonsense in it ---------------------------------------------------------------


def nonsense(honest: Json) -> Iterator[tuple[str, Json]]:
    """Answers in which something about one user is not as it must be; the other's part is."""

    def with_change(change: Callable[[Json], object]) -> Json:
        answer = copy.deepcopy(honest)
        change(answer)
        return answer

    def device(answer: Json) -> Json:
        return answer["device_keys"][EVE]["TABLET"]

    def signer(answer: Json) -> Json:
        return answer["self_signing_keys"][EVE]

    def master(answer: Json) -> Json:
        return answer["master_keys"][EVE]

    changes: Mapping[str, Callable[[Json], object]] = {
        "signer without signatures": lambda a: signer(a).pop("signatures"),
        "signer signed by another": lambda a: signer(a).update(signatures={"@x:y": {"e:a": "b"}}),
        "signer with a list of signatures": lambda a: signer(a).update(signatures=[]),
        "signer without keys": lambda a: signer(a).update(keys={}),
        "signer with another kind of key": lambda a: signer(a).update(keys={"curve25519:x": "y"}),
        "signer with an odd key id": lambda a: signer(a).update(keys={"x": "y"}),
        "signer with a number for a key": lambda a: signer(a).update(keys={"ed25519:x": 5}),
        "signer is a string": lambda a: a["self_signing_keys"].update({EVE: "x"}),
        "signer is null": lambda a: a["self_signing_keys"].update({EVE: None}),
        "signer of an odd use": lambda a: signer(a).update(usage=["evil"]),
        "master of no use": lambda a: master(a).pop("usage"),
        "master without keys": lambda a: master(a).update(keys={}),
        "master with an odd signature": lambda a: master(a).update(signatures={EVE: {"odd": "b"}}),
        "device without keys": lambda a: device(a).pop("keys"),
        "device is a string": lambda a: a["device_keys"][EVE].update(TABLET="x"),
        "device is null": lambda a: a["device_keys"][EVE].update(TABLET=None),
        "devices are null": lambda a: a["device_keys"].update({EVE: None}),
        "devices are a list": lambda a: a["device_keys"].update({EVE: []}),
        "device of nobody": lambda a: device(a).pop("user_id"),
        "device without signatures": lambda a: device(a).pop("signatures"),
        "device with null for signatures": lambda a: device(a).update(signatures=None),
        "device with a string of algorithms": lambda a: device(a).update(algorithms="x"),
        "device with an unknown algorithm": lambda a: device(a).update(algorithms=["evil"]),
        "device with an odd key id": lambda a: device(a)["keys"].update(odd="x"),
        "device with a short key": lambda a: device(a)["keys"].update({"ed25519:TABLET": "x"}),
        "device with odd unsigned data": lambda a: device(a).update(unsigned="x"),
        "device with a number for a name": lambda a: device(a).update(
            unsigned={"device_display_name": 5}
        ),
        "device with a fraction": lambda a: device(a).update(x=1.5),
        "device with half a letter": lambda a: device(a).update(x="\ud800"),
        "device with half a letter for an id": lambda a: a["device_keys"][EVE].update(
            {"\ud800": {"device_id": "\ud800", "user_id": EVE, "keys": {}, "signatures": {}}}
        ),
        "failures are odd": lambda a: a.update(failures={"partner.test": "x"}),
        "failures are a number": lambda a: a.update(failures=5),
    }
    for name, change in changes.items():
        yield name, with_change(change)


async def test_nonsense_about_one_takes_nothing_away_from_another(scene: Scene) -> None:
    new = scene.new_phone(AWA, "NEW")
    for number, (name, answer) in enumerate(nonsense(scene.honest())):
        # A device that was not there before must be seen although the rest is nonsense.
        expected = {"PHONE"}
        if number % 2:
            answer["device_keys"][AWA]["NEW"] = new.published(SEEDS)
            expected.add("NEW")
        assert await scene.trusted_after(answer) == expected, name
        signed = signed_devices(answer).get(EVE)
        listed = isinstance(answer["device_keys"][EVE], dict)
        if listed:  # nonsense in place of a list says nothing; nonsense in it is no device
            wanted = set(signed.devices) if signed is not None else set()
            assert await scene.sender.trusted(EVE) == wanted, name


async def test_a_device_that_anybody_can_publish_silences_no_room(scene: Scene) -> None:
    scene.shows(scene.honest())
    scene.homeserver.answer["device_keys"][EVE]["ODD"] = {
        "algorithms": [],
        "device_id": "ODD",
        "user_id": EVE,
        "keys": {"odd": "x"},
        "signatures": {},
    }
    assert await scene.readers() == {"PHONE", "TABLET"}


async def test_one_time_keys_that_anybody_can_publish_silence_no_room(scene: Scene) -> None:
    name = "signed_curve25519:A"
    key = Phone(EVE, "ELSEWHERE").one_time_key()
    scene.homeserver.odd_one_time_keys = {
        "TEXT": {name: "x"},
        "LIST": {name: []},
        "BARE": {name: {"key": "A" * 43}},
        "UNSIGNED": {name: {"key": "A" * 43, "signatures": None}},
        "UNNAMED": {"odd": {}},
        "NONE": {},
        "OF ANOTHER": key,
    }
    odd = [scene.new_phone(EVE, device_id) for device_id in scene.homeserver.odd_one_time_keys]
    odd.append(scene.new_phone(EVE, "ZERO"))
    scene.homeserver.odd_one_time_keys["ZERO"] = odd[-1].one_time_key("A" * 43)
    devices = [one.published(OTHER) for one in (*odd, scene.tablet)]
    scene.shows(together(answer_about(EVE, OTHER, *devices), scene.honest()))
    scene.homeserver.answer["device_keys"][EVE] |= {one["device_id"]: one for one in devices}
    assert await scene.sender.trusted(AWA) == set()
    assert await scene.readers() == {"PHONE", "TABLET"}
    assert len(await scene.sender.trusted(EVE)) == len(odd) + 1
    assert scene.homeserver.keyed <= {"PHONE", "TABLET", "ZERO"}  # the last one signed its own


async def test_a_homeserver_that_gives_no_one_time_keys_silences_nobody_whom_we_can_reach(
    scene: Scene,
) -> None:
    assert await scene.readers() == {"PHONE", "TABLET"}
    new = scene.new_phone(AWA, "NEW")
    scene.shows(scene.honest(new.published(SEEDS)))
    await scene.sender.look(AWA, EVE)
    scene.homeserver.refuses = frozenset({"claim"})
    assert await scene.readers() == {"PHONE", "TABLET"}


# --- exactly the device that was signed ----------------------------------------------------------


async def test_a_signed_device_gets_the_key_and_an_unsigned_one_does_not(scene: Scene) -> None:
    ghost = scene.new_phone(AWA, "GHOST")
    scene.shows(scene.honest(ghost.published(None)))
    assert await scene.readers() == {"PHONE", "TABLET"}


async def test_the_signing_key_of_a_lost_phone_under_another_id_gets_no_key(scene: Scene) -> None:
    assert await scene.readers() == {"PHONE", "TABLET"}
    await scene.block("PHONE")
    for signed_by in (None, SEEDS):
        twin = scene.phone.published(signed_by, device_id="TWIN")
        scene.shows(scene.honest(twin))
        assert await scene.trusted_after(scene.homeserver.answer) == set()
        assert await scene.readers() == {"TABLET"}


async def test_the_encryption_key_of_a_lost_phone_in_another_device_gets_no_key(
    scene: Scene,
) -> None:
    await scene.readers()
    await scene.block("PHONE")
    new = scene.new_phone(AWA, "NEW")
    stolen = new.published(SEEDS, curve25519=scene.phone.keys.curve25519)
    assert await scene.trusted_after(scene.honest(stolen)) == set()
    assert await scene.readers() == {"TABLET"}


async def test_a_device_of_the_same_person_that_is_not_lost_goes_on_reading(scene: Scene) -> None:
    new = scene.new_phone(AWA, "NEW")
    scene.shows(scene.honest(new.published(SEEDS)))
    await scene.readers()
    await scene.block("PHONE")
    assert await scene.readers() == {"NEW", "TABLET"}


async def test_an_encryption_key_replaced_without_a_new_signature_gets_no_key(
    scene: Scene,
) -> None:
    assert await scene.readers() == {"PHONE", "TABLET"}
    evil = scene.new_phone(AWA, "PHONE")
    replaced = scene.phone.published(None, curve25519=evil.keys.curve25519)
    scene.shows(together(scene.homeserver.answer, answer_about(AWA, SEEDS, replaced)))
    await scene.sender.look(AWA, EVE)
    assert await scene.readers() == {"TABLET"}


async def test_the_keys_that_a_device_had_before_get_nothing_once_others_are_signed_for_it(
    scene: Scene,
) -> None:
    assert await scene.readers() == {"PHONE", "TABLET"}
    anew = Phone(AWA, "PHONE")
    scene.shows(together(scene.honest(), answer_about(AWA, SEEDS, anew.published(SEEDS))))
    await scene.sender.look(AWA, EVE)
    assert await scene.readers() == {"TABLET"}


async def test_a_withdrawn_signature_counts_no_more(scene: Scene) -> None:
    assert await scene.readers() == {"PHONE", "TABLET"}
    bare = answer_about(AWA, SEEDS, scene.phone.published(None))
    assert await scene.trusted_after(together(scene.honest(), bare)) == set()
    assert await scene.readers() == {"TABLET"}


async def test_devices_shown_without_an_identity_are_signed_by_nobody(scene: Scene) -> None:
    assert await scene.readers() == {"PHONE", "TABLET"}
    gone = scene.honest()
    del gone["master_keys"][AWA]
    del gone["self_signing_keys"][AWA]
    assert await scene.trusted_after(gone) == set()
    assert await scene.readers() == {"TABLET"}


def odd_identities(honest: Json) -> Iterator[tuple[str, Json]]:
    """Answers whose cross-signing part of a person is not, or not only, his identity."""
    evil = identity_objects(AWA, OTHER)
    usurped = CrossSigningSeeds.generate().device_signing_body(AWA, "D", lambda _: "")
    ((key_id, master),) = honest["master_keys"][AWA]["keys"].items()
    ((evil_id, evil_master),) = evil["master_keys"][AWA]["keys"].items()

    def with_parts(**parts: Any) -> Json:
        answer = copy.deepcopy(honest)
        for part, thing in parts.items():
            answer[part][AWA] = {**answer[part][AWA], **thing}
        return answer

    both_signers = {
        **honest["self_signing_keys"][AWA]["keys"],
        **evil["self_signing_keys"][AWA]["keys"],
    }
    yield "the signer of another", with_parts(self_signing_keys=evil["self_signing_keys"][AWA])
    yield "the master of another", with_parts(master_keys=evil["master_keys"][AWA])
    yield "a key of another use", with_parts(self_signing_keys=usurped["user_signing_key"])
    yield "a signer of somebody else", with_parts(self_signing_keys={"user_id": EVE})
    yield "two keys in the signer", with_parts(self_signing_keys={"keys": both_signers})
    yield (
        "two keys in the master",
        with_parts(master_keys={"keys": {key_id: master, evil_id: evil_master}}),
    )
    yield (
        "two keys the other way",
        with_parts(master_keys={"keys": {evil_id: evil_master, key_id: master}}),
    )
    yield "the pinned key under another name", with_parts(master_keys={"keys": {evil_id: master}})
    yield (
        "another key under the pinned name",
        with_parts(master_keys={"keys": {key_id: evil_master}}),
    )


async def test_an_odd_identity_signs_nothing_whether_it_was_met_before_or_not(
    scene: Scene,
) -> None:
    ghost = scene.new_phone(AWA, "GHOST")
    honest = scene.honest(ghost.published(OTHER))
    await scene.records.pins.meet({AWA: SEEDS.master_key})
    for name, answer in odd_identities(honest):
        assert await scene.trusted_after(answer) == set(), name
        assert await scene.trusted_after(honest) == {"PHONE"}, name


async def test_another_identity_than_the_pinned_one_gets_no_key_until_it_is_accepted(
    scene: Scene,
) -> None:
    assert await scene.readers() == {"PHONE", "TABLET"}
    usurper = scene.new_phone(AWA, "NEW")
    swapped = answer_about(AWA, OTHER, usurper.published(OTHER), scene.phone.published(SEEDS))
    scene.shows(together(scene.honest(), swapped))
    await scene.sender.look(AWA, EVE)
    assert await scene.readers() == {"TABLET"}
    change = await scene.records.pins.changed(AWA)
    assert change is not None
    async with scene.records.store.transaction() as connection:
        await scene.records.pins.accept(connection, change, now=NOW)
    assert await scene.readers() == {"NEW", "TABLET"}


# --- a homeserver that is silent, slow or down ---------------------------------------------------


async def test_what_was_judged_outlives_a_restart_and_a_homeserver_that_is_silent_then(
    scene: Scene,
) -> None:
    ghost = scene.new_phone(AWA, "GHOST")
    scene.shows(scene.honest(ghost.published(None)))
    assert await scene.readers() == {"PHONE", "TABLET"}
    await scene.restart()
    scene.shows({"device_keys": {}})
    assert await scene.readers() == {"PHONE", "TABLET"}
    await scene.block("PHONE")
    await scene.restart()
    assert await scene.readers() == {"TABLET"}


async def test_an_identity_replaced_while_we_were_down_gets_no_key_of_a_silent_homeserver(
    scene: Scene,
) -> None:
    assert await scene.readers() == {"PHONE", "TABLET"}
    await scene.records.pins.meet({AWA: OTHER.master_key})
    change = await scene.records.pins.changed(AWA)
    assert change is not None
    await scene.sender.stop()
    async with scene.records.store.transaction() as connection:
        await scene.records.pins.accept(connection, change, now=NOW)
    scene.shows({"device_keys": {}})
    await scene.sender.start()
    assert await scene.readers() == {"TABLET"}


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_stolen_phone_gets_no_key_of_a_silent_homeserver(
    scene: Scene, *, restarted: bool
) -> None:
    assert await scene.readers() == {"PHONE", "TABLET"}
    async with scene.records.store.transaction() as connection:
        await scene.records.pins.revoke(connection, AWA, now=NOW)
    scene.shows({"device_keys": {}})
    if restarted:
        await scene.restart()
    assert await scene.readers() == {"TABLET"}


@pytest.mark.parametrize("request_", ["query", "claim", "sendToDevice"])
async def test_who_leaves_while_the_homeserver_takes_its_time_reads_nothing_encrypted_after(
    scene: Scene, request_: str
) -> None:
    scene.homeserver.meanwhile[request_] = scene.leaves
    assert await scene.readers() == {"TABLET"}
    assert scene.homeserver.meanwhile == {}
    if request_ != "sendToDevice":  # by then it is on its way, and opens nothing
        assert scene.phone.room_keys == set()


async def test_a_phone_lost_while_the_homeserver_takes_its_time_reads_nothing_encrypted_after(
    scene: Scene,
) -> None:
    await scene.readers()
    await scene.restart()

    async def lost() -> None:
        await scene.block("PHONE")

    scene.homeserver.meanwhile["query"] = lost
    assert await scene.readers() == {"TABLET"}


async def test_who_has_left_reads_nothing_more_though_the_homeserver_says_nothing_of_it(
    scene: Scene,
) -> None:
    before = await scene.sender.speak()
    assert await scene.sender.speak() == before
    await scene.leaves()
    assert await scene.readers() == {"TABLET"}


async def test_records_that_change_with_every_look_send_nothing_rather_than_too_much(
    scene: Scene,
) -> None:
    async def grow() -> None:
        async with scene.records.store.transaction() as connection:
            await new_epoch(connection)
        scene.homeserver.meanwhile["query"] = grow
        scene.homeserver.meanwhile["sendToDevice"] = grow

    await grow()
    with pytest.raises(UnavailableError):
        await scene.sender.speak()


# --- what only the application service has -------------------------------------------------------


of_the_application_service = pytest.mark.parametrize("scene", [MautrixSender], indirect=True)


@pytest.fixture
def host(scene: Scene) -> MautrixSender:
    assert isinstance(scene.sender, MautrixSender)
    return scene.sender


@of_the_application_service
async def test_nothing_is_sent_to_a_room_while_it_is_not_known_who_is_in_it(
    scene: Scene, host: MautrixSender
) -> None:
    await scene.readers()
    host.state.unsure.add(ROOM)
    with pytest.raises(UnavailableError) as caught:
        await host.speak()
    assert caught.value.code == "room_unsure"
    host.state.unsure.clear()
    assert await scene.readers() == {"PHONE", "TABLET"}


@of_the_application_service
async def test_a_room_of_which_we_lose_track_while_we_look_at_devices_gets_nothing(
    scene: Scene, host: MautrixSender
) -> None:
    async def lost_track() -> None:
        host.state.unsure.add(ROOM)

    scene.homeserver.meanwhile["query"] = lost_track
    with pytest.raises(UnavailableError) as caught:
        await host.speak()
    assert caught.value.code == "room_unsure"
    assert scene.phone.room_keys == set()


@of_the_application_service
async def test_a_device_whose_keys_in_our_table_are_not_those_that_were_signed_gets_nothing(
    scene: Scene, host: MautrixSender
) -> None:
    await scene.readers()
    evil = Phone(AWA, "PHONE")
    store = host.cryptographer.crypto_store
    [device] = (await store.get_devices(UserID(AWA)) or {}).values()
    device.identity_key = IdentityKey(evil.keys.curve25519)
    await store.put_devices(UserID(AWA), {device.device_id: device})
    assert await host.trusted(AWA) == set()
    assert await host.cryptographer.resolve_trust(device) < TrustState.CROSS_SIGNED_TOFU


@of_the_application_service
async def test_who_is_removed_from_the_room_while_the_key_is_shared_reads_nothing_after(
    scene: Scene, host: MautrixSender
) -> None:
    async def removed() -> None:
        await host.state.set_membership(RoomID(ROOM), UserID(AWA), Membership.LEAVE)

    scene.homeserver.meanwhile["sendToDevice"] = removed
    assert await scene.readers() == {"TABLET"}


@of_the_application_service
@pytest.mark.parametrize("refused", [{AWA}, {EVE}, {AWA, EVE}])
async def test_of_whom_the_homeserver_refuses_to_tell_the_last_look_counts_and_others_are_looked_at(
    scene: Scene, host: MautrixSender, refused: set[str]
) -> None:
    await scene.readers()
    new = {AWA: scene.new_phone(AWA, "NEW"), EVE: scene.new_phone(EVE, "NEW TABLET")}
    for user, seeds in ((AWA, SEEDS), (EVE, OTHER)):
        device = new[user].published(seeds)
        scene.homeserver.answer["device_keys"][user][device["device_id"]] = device
    scene.homeserver.refuses = frozenset(refused)
    await host.cryptographer.refresh([AWA, EVE])
    told = {new[user].device_id for user in {AWA, EVE} - refused}
    assert await scene.readers() == {"PHONE", "TABLET"} | told
    scene.homeserver.refuses = frozenset()
    # Who was left out is looked at again with the next message, without a word from anybody.
    await host.cryptographer.forget_sessions_with(UserID(AWA))
    assert await scene.readers() == {"PHONE", "TABLET", "NEW", "NEW TABLET"}


@of_the_application_service
async def test_a_room_gets_a_new_key_after_the_homeserver_refused_to_tell_of_a_change(
    scene: Scene, host: MautrixSender
) -> None:
    before = await host.speak()
    assert await host.speak() == before
    scene.shows(together(scene.honest(), answer_about(AWA, SEEDS, scene.phone.published(None))))
    scene.homeserver.refuses = frozenset({AWA})
    await host.cryptographer.handle_device_lists(DeviceLists(changed=[UserID(AWA)]))
    scene.homeserver.refuses = frozenset()
    assert await scene.readers() == {"TABLET"}


@of_the_application_service
async def test_a_homeserver_that_is_gone_keeps_nobody_from_starting(
    scene: Scene, host: MautrixSender
) -> None:
    await scene.readers()
    await scene.homeserver.__aexit__()
    await host.cryptographer.refresh([AWA, EVE])
    assert await host.trusted(AWA) == {"PHONE"}


@of_the_application_service
async def test_a_change_of_who_is_signed_is_told_once_and_the_next_message_follows_it(
    scene: Scene, host: MautrixSender
) -> None:
    new = scene.new_phone(AWA, "NEW")
    scene.shows(scene.honest(new.published(None)))
    assert await scene.readers() == {"PHONE", "TABLET"}
    assert await host.cryptographer.unsigned_devices(AWA) == {"NEW": new.keys.ed25519}
    scene.shows(scene.honest(new.published(SEEDS)))
    for _ in range(2):
        await host.cryptographer.refresh([AWA])
    assert host.changed == [AWA]
    assert await scene.readers() == {"PHONE", "TABLET", "NEW"}
    assert await host.cryptographer.unsigned_devices(AWA) == {}


@of_the_application_service
async def test_a_question_for_a_room_key_is_refused_even_of_a_signed_device_of_our_own(
    scene: Scene, host: MautrixSender
) -> None:
    own = Phone(HOST, "SECOND")
    scene.shows(answer_about(HOST, OTHER, own.published(OTHER)))
    await host.look(HOST)
    assert await host.trusted(HOST) == {"SECOND"}
    [device] = (await host.cryptographer.crypto_store.get_devices(UserID(HOST)) or {}).values()
    asked = RequestedKeyInfo.deserialize(
        {"algorithm": "m.megolm.v1.aes-sha2", "room_id": ROOM, "sender_key": "", "session_id": ""}
    )
    with pytest.raises(RejectKeyShare):
        await host.cryptographer.allow_key_share(device, asked)


@of_the_application_service
@pytest.mark.parametrize("shown", [{}, "odd", {"keys": {"odd": "x"}}])
async def test_an_identity_of_ours_that_is_shown_in_any_shape_is_never_replaced(
    scene: Scene, host: MautrixSender, tmp_path: Path, shown: object
) -> None:
    scene.shows({"device_keys": {HOST: {}}, "master_keys": {HOST: shown}})
    recovery_key = tmp_path / "fajma.recovery-key"
    recovery_key.write_text("kept\n")
    with pytest.raises(InputError) as caught:
        await host.cryptographer.sign_ourselves(recovery_key)
    assert caught.value.code == "recovery_key_missing"
    assert recovery_key.read_text() == "kept\n"


# --- what only the alert bot has -----------------------------------------------------------------

of_the_alert_bot = pytest.mark.parametrize("scene", [NioSender], indirect=True)


@pytest.fixture
def alerts(scene: Scene) -> NioSender:
    assert isinstance(scene.sender, NioSender)
    return scene.sender


def received(
    scene: Scene,
    alerts: NioSender,
    *,
    room_id: str = ROOM,
    forwarded: bool = False,
    before: int = 0,
    **more: Any,
) -> nio.Event | None:
    """What the alert bot makes of a message that the phone encrypted.

    Args:
        scene: whose phone.
        alerts: who receives it.
        room_id: the room that stands in the encrypted part.
        forwarded: the key came from another device than the one that encrypted.
        before: how many messages the phone encrypted before with the same key.
        more: of the encrypted part.
    """
    sending = vodozemac.GroupSession()
    session_key = sending.session_key.to_base64()
    for _ in range(before):
        sending.encrypt(b"{}")
    keys = scene.phone.keys
    chain = [scene.tablet.keys.curve25519] if forwarded else []
    session = InboundGroupSession(session_key, keys.ed25519, keys.curve25519, ROOM, chain)
    alerts.client.olm.inbound_group_store.add(session)
    plain = {
        "type": "m.room.message",
        "room_id": room_id,
        "content": {"msgtype": "m.text", "body": "!garde prendre"},
        **more,
    }
    source = {
        "type": "m.room.encrypted",
        "event_id": f"$said-{sending.session_id}",
        "sender": AWA,
        "origin_server_ts": 1_770_000_000_000,
        "content": {
            "algorithm": "m.megolm.v1.aes-sha2",
            "ciphertext": sending.encrypt(json.dumps(plain).encode()).to_base64(),
            "session_id": sending.session_id,
            "sender_key": keys.curve25519,
            "device_id": scene.phone.device_id,
        },
    }
    room = alerts.client.rooms[ROOM]
    return alerts.client._handle_timeline_event(MegolmEvent.from_dict(source), ROOM, room, set())


async def is_heard(scene: Scene, alerts: NioSender, *, forwarded: bool = False) -> bool:
    """Whether a command that the phone sent before counts now."""
    event = received(scene, alerts, forwarded=forwarded)
    assert event is not None
    return await alerts.client.is_signed_now(event, ROOM)


@of_the_alert_bot
async def test_a_command_of_a_signed_device_counts(scene: Scene, alerts: NioSender) -> None:
    assert await is_heard(scene, alerts)


@of_the_alert_bot
@pytest.mark.parametrize("met", [False, True])
async def test_a_command_does_not_count_of_a_device_that_is_signed_no_more(
    scene: Scene, alerts: NioSender, *, met: bool
) -> None:
    if met:
        assert await is_heard(scene, alerts)
    scene.shows(answer_about(AWA, SEEDS, scene.phone.published(None)))
    assert not await is_heard(scene, alerts)


@of_the_alert_bot
async def test_a_command_counts_of_a_device_that_was_signed_just_now(
    scene: Scene, alerts: NioSender
) -> None:
    scene.shows(answer_about(AWA, SEEDS, scene.phone.published(None)))
    await scene.readers()
    scene.shows(scene.honest())
    assert await is_heard(scene, alerts)


@of_the_alert_bot
async def test_a_command_does_not_count_of_a_device_that_is_listed_no_more(
    scene: Scene, alerts: NioSender
) -> None:
    assert await is_heard(scene, alerts)
    scene.shows(answer_about(AWA, SEEDS))
    assert not await is_heard(scene, alerts)
    assert alerts.client.device_store[AWA]["PHONE"].verified  # which alone proves nothing


@of_the_alert_bot
async def test_a_command_does_not_count_after_the_phone_was_lost_or_stolen(
    scene: Scene, alerts: NioSender
) -> None:
    assert await is_heard(scene, alerts)
    async with scene.records.store.transaction() as connection:
        await scene.records.pins.revoke(connection, AWA, now=NOW)
    assert not await is_heard(scene, alerts)


@of_the_alert_bot
async def test_a_command_does_not_count_by_an_old_look_when_the_homeserver_says_nothing_now(
    scene: Scene, alerts: NioSender
) -> None:
    assert await is_heard(scene, alerts)
    scene.shows({"device_keys": {}})
    assert not await is_heard(scene, alerts)
    scene.shows(scene.honest())
    scene.homeserver.refuses = frozenset({AWA})
    with pytest.raises(UnavailableError) as caught:
        await is_heard(scene, alerts)
    assert caught.value.code == "keys_query_refused"
    scene.homeserver.refuses = frozenset()
    assert await is_heard(scene, alerts)


@of_the_alert_bot
async def test_an_alarm_does_not_wait_for_somebody_of_whom_the_homeserver_refuses_to_tell(
    scene: Scene, alerts: NioSender
) -> None:
    await scene.readers()
    new = scene.new_phone(AWA, "NEW")
    scene.shows(scene.honest(new.published(SEEDS)))
    scene.homeserver.refuses = frozenset({EVE})
    alerts.client.olm.users_for_key_query |= {AWA, EVE}  # what a sync tells of a change
    assert await scene.readers() == {"PHONE", "NEW", "TABLET"}
    # Nor does a command of somebody else.
    assert await is_heard(scene, alerts)


@of_the_alert_bot
async def test_two_commands_at_once_are_both_judged_by_a_look_of_now(
    scene: Scene, alerts: NioSender
) -> None:
    assert await asyncio.gather(*(is_heard(scene, alerts) for _ in range(4))) == [True] * 4


@of_the_alert_bot
async def test_a_command_does_not_count_whose_key_somebody_else_passed_on(
    scene: Scene, alerts: NioSender
) -> None:
    assert not await is_heard(scene, alerts, forwarded=True)


@of_the_alert_bot
async def test_what_was_encrypted_for_another_room_or_for_its_state_is_not_read(
    scene: Scene, alerts: NioSender
) -> None:
    assert received(scene, alerts) is not None
    assert received(scene, alerts, room_id="!other:clinic.test") is None
    assert received(scene, alerts, type="com.fajma.vitals") is not None
    assert received(scene, alerts, type="com.fajma.vitals", state_key="p1") is None


@of_the_alert_bot
@pytest.mark.parametrize("before", [0, 1, 200])
async def test_a_message_comes_with_its_place_among_those_of_its_key(
    scene: Scene, alerts: NioSender, before: int
) -> None:
    event = received(scene, alerts, before=before)
    assert event is not None
    assert event.message_index == before
