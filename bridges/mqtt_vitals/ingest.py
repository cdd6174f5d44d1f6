"""From messages of monitors to the readings log, a batch in one transaction.

A message is decoded, placed in time (``clocks``), attributed to whoever wore the monitor then,
sealed and committed. Nothing in a batch can make it fail: what is no reading goes, sealed and
counted, to the quarantine in the same transaction. Only after the commit are messages acknowledged,
to the broker (``subscriber``) and, for v2, to the monitor, which then deletes its records.

Identity of a v1 reading: the fingerprint (keyed, so that it reveals nothing) of device and payload.
A redelivery has the same payload. Two readings of one device with the same payload to the last
byte, its timestamp included, count as one. Identity of a v2 reading: its sequence number; and a
fingerprint of what it says, where the number was used before for something else and a person has
accepted that the monitor numbers its records anew.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import structlog
from mautrix.util.async_db import Connection

from bridges.mqtt_vitals.clocks import Arrival, Clocks, Placed, place_replayed, place_v2
from bridges.mqtt_vitals.rate import Rates
from fajma import wire
from fajma.errors import DecodeError
from fajma.sequence import Sequence as Settled
from fajma.store import Records
from fajma.store.away import is_outage
from fajma.store.devices import Fleet, KeyPair
from fajma.store.leases import LeaseLostError
from fajma.store.quarantine import (
    NO_PATIENT_KEY,
    RATE_LIMITED,
    REPLAYABLE,
    SEQUENCE_REUSED,
    UNKNOWN_DEVICE,
    Refused,
)
from fajma.store.readings import Fate, NewReading
from fajma.vitals import Age, DeviceId, Kind, Reading
from fajma.wire import Channel, Envelope, Gap, Item, Pack

log = structlog.get_logger()

UNKNOWN_KEY: Final = "unknown_key"
DOWNGRADED: Final = "downgraded"
"""A monitor whose sealed messages we know, said in clear what anybody could say."""
BUG: Final = "bug"
LOST_MOST: Final = 1 << 40
"""Most records that one batch can count as lost; a firmware that claims more has a bug."""

SUSPICIOUS: Final = frozenset(
    {"wrong_device", "not_authentic", UNKNOWN_KEY, SEQUENCE_REUSED, RATE_LIMITED, DOWNGRADED}
)
"""Refusals that smell of attack: noted in the audit log, once an hour for each device."""

EXPIRE_EVERY_S: Final = 3600.0

AUDIT_AGAIN_S: Final = 3600.0


class Message(NamedTuple):
    """One message from the broker, not yet acknowledged.

    Attributes:
        topic: where it came.
        payload: its bytes.
        arrival: when it came.
        acknowledge: tells the broker that it is committed.
        replayed: it comes from the quarantine, not from the broker.
    """

    topic: str
    payload: bytes
    arrival: Arrival
    acknowledge: Callable[[], None]
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a v2 monitor may delete: every record up to ``record``, sealed with ``keys.down``."""

    device: DeviceId
    record: int
    keys: KeyPair


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a batch.

    Attributes:
        stored: new readings.
        repeated: readings that were in the log already.
        refused: by reason.
        settled: what v2 monitors are to be told.
    """

    stored: int
    repeated: int
    refused: Counter[str]
    settled: tuple[Settlement, ...] = ()


@dataclass(slots=True)
class _Batch:
    """What a batch has come to so far."""

    now: datetime
    clocks: Clocks
    rates: Rates
    envelopes: Mapping[bytes, Envelope]
    """Of v2 messages, by payload, those that are envelopes."""
    readings: list[NewReading] = field(default_factory=list)
    sources: list[Message] = field(default_factory=list)
    """For each reading, the message that it came in."""
    refused: list[Refused] = field(default_factory=list)
    packs: list[tuple[Pack, KeyPair]] = field(default_factory=list)
    repeated: frozenset[int] = frozenset()
    """Identities of messages that came before: they say nothing new of any clock."""
    went_back: set[int] = field(default_factory=set)
    """Identities of the messages that may have come before, by the clock of their monitor."""
    suspects: dict[tuple[str, str], Arrival] = field(default_factory=dict)
    """Device and reason of what smells of attack, and when it came."""
    audited: dict[tuple[str, str], float] = field(default_factory=dict)
    """Which of them are noted in the audit log, and when, by our monotonic clock."""
    online: dict[DeviceId, tuple[bool, datetime]] = field(default_factory=dict)
    """Which v2 monitors came to the broker or left it, and when that was heard."""
    kept: set[int] = field(default_factory=set)
    """Identities of the messages that go to the quarantine."""
    lost: int = 0
    missing: int = 0
    """Records that v2 monitors hold no more and that never came."""


class _CameBeforeError(Exception):
    """Messages have taught the clocks that came before; the batch is to be tried without that."""

    def __init__(self, messages: frozenset[int]) -> None:
        super().__init__()
        self.messages = messages


class Ingest:
    """Commits messages to the readings log. Knows nothing about MQTT connections.

    Args:
        records: where to.
        rates: what each monitor may send, if not the usual.
        now: the clock by which links are made.
    """

    def __init__(
        self,
        records: Records,
        *,
        rates: Rates | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._records = records
        self._now = now
        self._fleet: Fleet = records.devices.fleet()
        self._clocks = Clocks()
        self._rates = rates or Rates()
        self._audited: dict[tuple[str, str], float] = {}

    async def commit(self, messages: Sequence[Message]) -> Outcome:
        """Decode, place, attribute, seal and commit a batch in one transaction.

        What is not a reading is quarantined. A message that cannot be committed at all, which is a
        fault of ours, must not keep the others out: it is found by halves and quarantined alone.

        Raises:
            Exception: the database is away, or is no longer ours to write to.
        """
        try:
            return await self._commit(messages)
        except Exception as error:
            if is_outage(error) or isinstance(error, LeaseLostError):
                raise
            kind = type(error).__name__
            log.critical("batch_not_committed", messages=len(messages), error=kind)
        if len(messages) == 1:
            return await self._give_up(messages[0])
        middle = len(messages) // 2
        one, other = await self.commit(messages[:middle]), await self.commit(messages[middle:])
        return Outcome(
            one.stored + other.stored,
            one.repeated + other.repeated,
            one.refused + other.refused,
            one.settled + other.settled,
        )

    async def _give_up(self, message: Message) -> Outcome:
        """Keep a message that cannot be committed; its monitor is not told to delete anything."""
        if message.replayed:  # it is kept, and was counted
            return Outcome(0, 0, Counter({BUG: 1}))
        device = _device(message.topic)
        refused = Refused(
            BUG, message.topic, message.payload, message.arrival.at, device=device, keep=True
        )
        async with self._records.store.transaction() as connection:
            await self._records.quarantine.keep(connection, [refused])
        return Outcome(0, 0, Counter({BUG: 1}))

    async def _commit(self, messages: Sequence[Message]) -> Outcome:
        try:
            return await self._try(messages)
        except _CameBeforeError as found:
            return await self._try(messages, repeated=found.messages)

    async def _try(
        self, messages: Sequence[Message], *, repeated: frozenset[int] | None = None
    ) -> Outcome:
        """Commit a batch, or raise ``_CameBeforeError`` where nobody has looked for such messages.

        Args:
            messages: the batch.
            repeated: identities of those that came before, once they are known.
        """
        records = self._records
        async with records.store.transaction() as connection:
            await self._fleet.refresh(connection)
            batch = _Batch(
                self._now(),
                self._clocks.tried(),
                self._rates.tried(),
                _envelopes(messages),
                repeated=repeated or frozenset(),
            )
            wanted = {(one.device, one.key_version) for one in batch.envelopes.values()}
            await self._fleet.load_keys(connection, wanted)
            for message in messages:
                self._sort(message, batch)
            await self._leave_out_locked(batch)
            fates = await records.readings.append(connection, batch.readings)
            if Fate.REUSED in fates:
                fates = await self._numbered_anew(connection, batch, fates)
            if repeated is None and batch.went_back:
                came_before = _came_before(batch, fates)
                if came_before:
                    raise _CameBeforeError(came_before)
            news = [
                await records.devices.connected(connection, device, online=online, now=at)
                for device, (online, at) in batch.online.items()
            ]
            settled = await self._settle(connection, batch)
            # What comes from the quarantine was counted and is kept: see Message.replayed.
            first = [one for one in batch.refused if not one.again]
            made_room = await records.quarantine.keep(connection, first)
            counts = Counter(fate.value for fate in fates if fate is not Fate.REUSED)
            if made_room:
                counts["quarantine_full"] = made_room
                log.warning("quarantine_full", gone=made_room)
            if batch.lost:
                counts["lost_at_device"] = batch.lost
            if batch.missing:
                counts["records_missing"] = batch.missing
            await records.tally.add(connection, counts)
            await self._audit(connection, batch)
        self._clocks.keep(batch.clocks)
        self._rates.keep(batch.rates)
        self._audited.update(batch.audited)
        stored = counts[Fate.STORED.value]
        if stored or any(news):
            records.store.hints.notify("readings")
        return Outcome(
            stored,
            counts[Fate.REPEATED.value],
            Counter(one.reason for one in batch.refused),
            settled,
        )

    # --- one message -----------------------------------------------------------------------------

    def _sort(self, message: Message, batch: _Batch) -> None:
        """Find out what a message is."""
        try:
            if message.topic.startswith(wire.V2_PREFIX):
                self._sort_v2(message, batch)
            else:
                self._sort_v1(message, batch)
        except DecodeError as error:
            device = _device(message.topic)
            self._refuse(batch, error.code, device, message)
            log.warning("reading_refused", reason=error.code, why=str(error), device=device)
        except Exception as error:  # noqa: BLE001 - a bug of ours must not stop every monitor
            device = _device(message.topic)
            self._refuse(batch, BUG, device, message)
            log.critical("message_not_understood", device=device, error=type(error).__name__)

    def _sort_v1(self, message: Message, batch: _Batch) -> None:
        device = wire.parse_topic(message.topic)
        if self._fleet.speaks_v2(device):
            raise DecodeError(
                "This monitor seals its readings, so what comes in clear is not believed.",
                code=DOWNGRADED,
            )
        if not message.replayed and not batch.rates.allows(device, message.arrival.mono_s):
            # Kept, for such a monitor does not send it again.
            self._refuse(batch, RATE_LIMITED, device, message)
            return
        decoded = wire.decode_v1(message.topic, message.payload)
        for rejected in decoded.rejected:
            self._refuse(batch, f"{rejected.kind}_{rejected.reason}", device, message)
            log.warning(
                "value_refused",
                device=device,
                kind=rejected.kind.value,
                reason=rejected.reason.value,
            )
        if message.replayed:
            placed = place_replayed(decoded.timestamp_ms, message.arrival)
        else:
            clocks = _clocks_for(message, batch)
            placed = clocks.place_v1(device, decoded.timestamp_ms, message.arrival)
            if clocks.went_back(device):
                batch.went_back.add(id(message))
        record = self._records.site_key.fingerprint(b"v1 reading", device.encode(), message.payload)
        reading = Reading(
            device,
            placed.measured_at,
            message.arrival.at,
            placed.clock,
            decoded.values,
            placed.age,
            unusable=decoded.unusable,
        )
        self._attribute(message, batch, reading, record)

    def _sort_v2(self, message: Message, batch: _Batch) -> None:
        device, channel = wire.parse_v2_topic(message.topic)
        if channel is Channel.STATUS:
            online = wire.parse_status(message.payload)
            if batch.rates.allows(device, message.arrival.mono_s):
                batch.online[device] = (online, message.arrival.at)
        elif channel is Channel.VITALS:
            self._sort_pack(device, message, batch)
        else:
            raise DecodeError("Monitors say nothing on this topic.", code="bad_topic")

    def _sort_pack(self, device: DeviceId, message: Message, batch: _Batch) -> None:
        if not message.replayed and not batch.rates.allows(device, message.arrival.mono_s):
            # Neither stored nor settled: the monitor sends it again, later.
            self._refuse(batch, RATE_LIMITED, device, message, keep=False)
            return
        envelope = batch.envelopes.get(message.payload) or wire.parse_envelope(message.payload)
        keys = self._fleet.keys(envelope.device, envelope.key_version)
        if keys is None:
            raise DecodeError(
                "The message is sealed with a key that this device does not have: enrol it again.",
                code=UNKNOWN_KEY,
            )
        content = wire.open_envelope(envelope, keys.up, message.topic)
        pack = wire.decode_pack(content, device)
        more = sum(isinstance(one, Item) for one in pack.items) - 1
        limited = more > 0 and not message.replayed
        if limited and not batch.rates.allows(device, message.arrival.mono_s, more):
            self._refuse(batch, RATE_LIMITED, device, message, keep=False)
            return
        unknown = False
        for item, placed in self._placed(pack, message, batch):
            for rejected in item.rejected:
                self._refuse(batch, f"{rejected.kind}_{rejected.reason}", device, message)
            if item.no_usable_value:
                self._refuse(batch, "no_usable_value", device, message)
                continue
            reading = Reading(
                device,
                placed.measured_at,
                message.arrival.at,
                placed.clock,
                item.values,
                placed.age,
                item.quality,
                item.contact,
                item.unusable,
            )
            if self._fleet.wearing(device, placed.measured_at, batch.now) is None:
                unknown = True  # once for the message, which holds them all
                continue
            self._attribute(message, batch, reading, item.seq.to_bytes(8, "big"), _said(item))
        if unknown:
            self._refuse(batch, UNKNOWN_DEVICE, device, message)
        batch.packs.append((pack, keys))  # settled only when all of it was understood

    def _placed(self, pack: Pack, message: Message, batch: _Batch) -> Iterator[tuple[Item, Placed]]:
        items = [one for one in pack.items if isinstance(one, Item)]
        way_s = None
        if items and not message.replayed:
            newest = items[-1]
            clocks = _clocks_for(message, batch)
            way_s = clocks.way_of(
                pack.device,
                pack.boot,
                pack.sent_ms,
                newest.measured_at if newest.boot == pack.boot else None,
                before_sending_s=(pack.sent_ms - newest.mono_ms) / 1000,
                arrival=message.arrival,
            )
            if clocks.went_back(pack.device):
                batch.went_back.add(id(message))
        for item in items:
            of_start = item.boot == pack.boot
            placed = place_v2(
                item.measured_at,
                before_sending_s=(pack.sent_ms - item.mono_ms) / 1000 if of_start else None,
                since_start_s=pack.sent_ms / 1000,
                way_s=way_s,
                arrival=message.arrival,
            )
            yield item, placed._replace(age=Age.LATE) if message.replayed else placed

    def _attribute(
        self,
        message: Message,
        batch: _Batch,
        reading: Reading,
        record: bytes,
        said: bytes | None = None,
    ) -> None:
        """Give a reading to whoever wore the monitor when it was measured."""
        worn = self._fleet.wearing(reading.device, reading.measured_at, batch.now)
        if worn is None:
            self._refuse(batch, UNKNOWN_DEVICE, reading.device, message)
            log.warning("reading_refused", reason=UNKNOWN_DEVICE, device=reading.device)
            return
        trace = self._records.site_key.fingerprint(b"v2 record", said)[:8] if said else None
        batch.readings.append(NewReading(record, worn.patient, reading, trace))
        batch.sources.append(message)

    def _refuse(
        self, batch: _Batch, reason: str, device: str, message: Message, *, keep: bool = True
    ) -> None:
        # Once is enough, however many of its values are refused; but for what can be replayed.
        again = id(message) in batch.kept and reason not in REPLAYABLE
        keep = keep and not message.replayed and not again
        if keep:
            batch.kept.add(id(message))
        batch.refused.append(
            Refused(
                reason,
                message.topic,
                message.payload,
                message.arrival.at,
                device=device,
                keep=keep,
                again=message.replayed,
            )
        )
        if reason in SUSPICIOUS:
            batch.suspects[device, reason] = message.arrival

    # --- what belongs to the transaction ---------------------------------------------------------

    async def _leave_out_locked(self, batch: _Batch) -> None:
        """A patient whose key is gone must not stop the others; his messages wait, sealed."""
        patients = {new.patient for new in batch.readings}
        locked = await self._records.readings.locked(patients)
        if not locked:
            return
        kept: list[tuple[NewReading, Message]] = []
        told: set[int] = set()
        for new, message in zip(batch.readings, batch.sources, strict=True):
            if new.patient not in locked:
                kept.append((new, message))
            elif id(message) not in told:  # once for the message, which holds them all
                told.add(id(message))
                self._refuse(batch, NO_PATIENT_KEY, new.reading.device, message)
        batch.readings = [new for new, _ in kept]
        batch.sources = [message for _, message in kept]
        for patient in sorted(locked):
            log.critical("patient_key_missing", patient=patient)

    async def _numbered_anew(
        self, connection: Connection, batch: _Batch, fates: Sequence[Fate]
    ) -> list[Fate]:
        """Readings whose numbers are in the log for something else: store them, or refuse them.

        What is in the log is settled. If it is not, a person has accepted that the monitor numbers
        its records anew (``Devices.begin_anew``), and this is another record. So it is when a
        person wants it out of the quarantine.
        """
        records = self._records
        found = list(fates)
        reused = [place for place, fate in enumerate(fates) if fate is Fate.REUSED]
        again = [
            replace(new, record=new.record + (new.trace or b""))
            for new in (batch.readings[place] for place in reused)
        ]
        known = await records.readings.has(connection, again)
        settled = await records.devices.sequences(connection, {new.reading.device for new in again})
        now = {
            (new.reading.device, new.record)
            for new, fate in zip(batch.readings, fates, strict=True)
            if fate is Fate.STORED
        }
        told: set[int] = set()
        wanted = []
        for place, new, is_known in zip(reused, again, known, strict=True):
            device, number = new.reading.device, batch.readings[place].record
            message = batch.sources[place]
            stands = settled.get(device, Settled()).is_settled(int.from_bytes(number, "big"))
            if is_known or message.replayed or not (stands or (device, number) in now):
                wanted.append((place, new))
            elif id(message) not in told:  # once for the message, which holds them all
                told.add(id(message))
                self._refuse(batch, SEQUENCE_REUSED, device, message)
                log.error("reading_refused", reason=SEQUENCE_REUSED, device=device)
        outcome = await records.readings.append(connection, [new for _, new in wanted])
        for (place, _), fate in zip(wanted, outcome, strict=True):
            found[place] = fate
        return found

    async def _settle(self, connection: Connection, batch: _Batch) -> tuple[Settlement, ...]:
        """Note which records of v2 monitors are settled now; the log's lock is held already."""
        if not batch.packs:
            return ()
        devices = self._records.devices
        known = await devices.sequences(connection, {pack.device for pack, _ in batch.packs})
        new = {pack.device for pack, _ in batch.packs} - known.keys()
        keys: dict[DeviceId, KeyPair] = {}
        last: dict[DeviceId, int] = {}
        for pack, pair in batch.packs:
            before = known.get(pack.device, Settled())
            missing = before.missing_below(pack.oldest)
            if missing:
                # We were set back to an older backup, or the monitor deleted what we never had.
                batch.missing += missing
                log.error("records_missing", device=pack.device, count=missing)
            after = before.begin_at(pack.oldest)
            for item in pack.items:
                if isinstance(item, Gap):
                    told = after.settle(item.first, item.first + item.count - 1)
                    if item.overwritten and told != after:
                        batch.lost = min(batch.lost + item.count, LOST_MOST)
                        log.error("records_lost_at_device", device=pack.device, count=item.count)
                    after = told
                else:
                    after = after.settle(item.seq, item.seq)
            known[pack.device] = after
            keys[pack.device] = pair
            last[pack.device] = max(last.get(pack.device, -1), _last_of(pack))
        await devices.keep_sequences(connection, known)
        if new:
            await devices.first_heard(connection)
        # No further than what it has told us: a monitor that numbers its records anew would believe
        # that we have what it has not sent yet.
        settled = {device: min(known[device].contiguous, last[device]) for device in keys}
        return tuple(
            Settlement(device, settled[device], pair)
            for device, pair in keys.items()
            if settled[device] >= 0  # there is nothing to say before the first one
        )

    async def _audit(self, connection: Connection, batch: _Batch) -> None:
        for (device, reason), came in batch.suspects.items():
            last_s = self._audited.get((device, reason))
            if last_s is None or came.mono_s - last_s >= AUDIT_AGAIN_S:
                await self._records.audit.note(
                    connection,
                    actor=f"monitor {device}",
                    action="message.refused",
                    subject=device,
                    now=came.at,
                    reason=reason,
                )
                batch.audited[device, reason] = came.mono_s


async def forget_refused(records: Records, *, after: timedelta) -> None:
    """Forget what has been in the quarantine for long, once an hour, until cancelled."""
    while True:
        try:
            gone = await records.quarantine.expire(before=datetime.now(UTC) - after)
            if gone:
                log.info("quarantine_expired", messages=gone)
        except Exception as error:  # noqa: BLE001 - a database that is away comes back
            log.error("quarantine_not_expired", error=type(error).__name__)
        await asyncio.sleep(EXPIRE_EVERY_S)


def _envelopes(messages: Sequence[Message]) -> dict[bytes, Envelope]:
    """The v2 messages of a batch, taken apart but not opened."""
    found = {}
    for message in messages:
        if message.topic.startswith(wire.V2_PREFIX):
            with contextlib.suppress(DecodeError):  # looked at again when its turn comes
                found[message.payload] = wire.parse_envelope(message.payload)
    return found


def _clocks_for(message: Message, batch: _Batch) -> Clocks:
    """What a message is placed with; what came before leaves no trace there."""
    return batch.clocks.tried() if id(message) in batch.repeated else batch.clocks


def _came_before(batch: _Batch, fates: Sequence[Fate]) -> frozenset[int]:
    """The messages of which the log had every reading, among those whose clocks went back."""
    new = {
        id(message)
        for message, fate in zip(batch.sources, fates, strict=True)
        if fate is not Fate.REPEATED
    }
    return frozenset(batch.went_back & {id(message) for message in batch.sources} - new)


def _last_of(pack: Pack) -> int:
    """The highest number that a pack says something about."""
    if not pack.items:
        return pack.oldest - 1
    item = pack.items[-1]
    return item.first + item.count - 1 if isinstance(item, Gap) else item.seq


def _said(item: Item) -> bytes:
    """What a record says, in one fixed form."""
    values = ",".join(f"{kind}={item.values[kind]}" for kind in Kind if kind in item.values)
    said = f"{item.boot}/{item.mono_ms}/{item.measured_at}/{item.quality}/{item.contact}/{values}"
    if item.unusable:
        said += f"/{','.join(sorted(item.unusable))}"
    return said.encode()


def _device(topic: str) -> str:
    """Whose topic it is; the broker lets nobody else write there."""
    try:
        if topic.startswith(wire.V2_PREFIX):
            return wire.parse_v2_topic(topic)[0]
        return wire.parse_topic(topic)
    except DecodeError:
        return "unknown"
