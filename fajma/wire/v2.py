"""v2, the SenML packs (RFC 8428, CBOR) of our firmware, to and from dataclasses.

A pack is a list of records; each states one thing, by its name. The rules, in the order of the
records:

1. The first record carries the base name, which is the device's.
2. ``oldest``, ``boot`` and ``sent``, once each and in this order, before the first item.
3. ``boot`` again whenever the following readings are of another start; it ends the item before it.
4. ``seq`` begins an item, which lasts until the next ``seq`` or ``boot``. An item is either a gap
   (``lost`` or ``unused``, nothing else) or a reading: ``mono``, ``clock``, values, ``quality``,
   ``contact``, each at most once and in any order.
5. A base time stands in ``seq`` records only. A reading with the clock set states its own; for one
   without, none may be in force (SenML keeps a base time until the next: 0 takes it back).
6. ``clock`` stays in force until stated again; the first reading states it.

Other names are ignored. The golden samples of these rules are in ``tests/samples/v2``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Final, TypeAlias

from fajma.errors import DecodeError
from fajma.vitals import MEASURES, DeviceId, Kind
from fajma.wire import cbor
from fajma.wire.values import REQUIRED, Reason, Rejected, judge, part, unusable

MAX_ITEMS: Final = 256
"""Readings and gaps in one pack."""

FIRST_ABSOLUTE_S: Final = 2**28
"""A smaller time is relative to now (RFC 8428, section 4.5.3); we know none but 0, "not known"."""

SENML_VERSION: Final = 10

# Labels (RFC 8428, section 6).
_BVER, _BN, _BT, _BU, _BV, _BS = -1, -2, -3, -4, -5, -6
_N, _U, _V, _VS, _VB, _S, _T, _UT, _VD = range(9)

_USUAL_LABELS: Final = frozenset({_N, _U, _V, _VB})
_VALUE_LABELS: Final = frozenset({_V, _VS, _VB, _VD})
_UNWANTED_LABELS: Final = frozenset({_BU, _BV, _BS, _T})
"""They would change what other fields mean, and our firmware does not use them."""

_UINT32: Final = range(2**32)
_MONOTONIC_MS: Final = range(2**42)
"""139 years: no monitor runs longer, and dates can be reckoned with it."""

_COUNTS: Final = range(2**63)
"""What counts fits a signed 64-bit integer too, as databases have."""

_QUALITIES: Final = range(101)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_INSTANTS_MS: Final = range(FIRST_ABSOLUTE_S * 1000, 253_402_300_800_000)  # up to the year 10000
_EXACT: Final = Context(prec=60)
_KIND_BY_NAME: Final = {kind.value: kind for kind in Kind}
_ITEM_NAMES: Final = frozenset(
    {*_KIND_BY_NAME, "mono", "clock", "quality", "contact", "lost", "unused"}
)

_Record: TypeAlias = dict[int | str, cbor.Value]


@dataclass(frozen=True, slots=True)
class Item:
    """What a device measured at one moment.

    Attributes:
        seq: its place among all records of the device, ever.
        boot: number of the start that ``mono_ms`` counts from.
        mono_ms: milliseconds from that start to the measurement.
        measured_at: aware UTC time by the device's clock, to the millisecond; ``None`` if not set.
        clock_set: whether the device's clock was set then.
        values: plausible values by kind, in the unit of ``MEASURES``; maybe none.
        rejected: what was kept out, in the order of ``Kind``; often empty.
        quality: signal quality of the pulse wave, 0 to 100 %; ``None`` if not known.
        contact: whether the probe is on the patient; ``None`` if the device does not know.
    """

    seq: int
    boot: int
    mono_ms: int
    measured_at: datetime | None
    clock_set: bool
    values: Mapping[Kind, Decimal]
    rejected: tuple[Rejected, ...]
    quality: int | None
    contact: bool | None

    @property
    def unusable(self) -> frozenset[Kind]:
        """As in ``fajma.vitals.Reading``; what it names is in ``rejected`` too."""
        return unusable(self.rejected)

    @property
    def no_usable_value(self) -> bool:
        """Whether it says nothing about the patient: no value, none unusable, probe not off.

        Such an item is refused by itself, with ``rejected`` as the reasons.
        """
        return not self.values and self.contact is not False and not self.unusable


@dataclass(frozen=True, slots=True)
class Gap:
    """Records that will never come.

    Attributes:
        first: sequence number of the first of them.
        count: how many, at least 1.
        overwritten: they were readings, and the journal was full; otherwise numbers that a restart
            left out, and nothing is lost.
    """

    first: int
    count: int
    overwritten: bool


@dataclass(frozen=True, slots=True)
class Pack:
    """What one message holds.

    Attributes:
        device: the monitor.
        oldest: the oldest record in its journal; everything below is settled.
        boot: number of its present start.
        sent_ms: milliseconds from that start to the writing of this pack.
        items: in the order of their sequence numbers; maybe none.
    """

    device: DeviceId
    oldest: int
    boot: int
    sent_ms: int
    items: tuple[Item | Gap, ...]


@dataclass(frozen=True, slots=True)
class Ack:
    """What a device is told about its readings.

    Attributes:
        committed: every record up to and including this one is committed, or settled otherwise.
        at: aware UTC time of the server, to the millisecond.
    """

    committed: int
    at: datetime


def base_name(device: DeviceId) -> str:
    """What every name in a pack of the device begins with.

    RFC 9039, section 4.1, makes an EUI-64 of a MAC-48 address by putting ffff into its middle, and
    section 3.2.1 recommends lower case: ``urn:dev:mac:a4cf12fffff03b7e:``.
    """
    return f"urn:dev:mac:{device[:6]}ffff{device[6:]}:".lower()


def decode_pack(content: bytes, device: DeviceId) -> Pack:
    """Read what was sealed in a message of a device.

    Args:
        content: a SenML pack in CBOR.
        device: whose topic it came on.

    Raises:
        DecodeError: the pack as a whole is unusable; ``code`` is ``not_cbor``, ``too_deep``,
            ``duplicate_key``, ``not_senml``, ``not_understood``, ``wrong_device`` or ``bad_pack``.
    """
    reader = _PackReader()
    for name, record in _records(content, device, timed="seq"):
        reader.take(name, record)
    return reader.finish(device)


def encode_pack(pack: Pack) -> bytes:
    """Write a pack as our firmware does: no units, nothing stated twice.

    Values may be implausible (a simulator must be able to send nonsense), finite, with at most 6
    decimals. ``rejected`` is not written.
    """
    records: list[_Record] = [
        {_BN: base_name(pack.device), **_stating("oldest", pack.oldest)},
        _stating("boot", pack.boot),
        _stating("sent", pack.sent_ms),
    ]
    boot = pack.boot
    clock: bool | None = None
    base_time: datetime | None = None
    for item in pack.items:
        if isinstance(item, Gap):
            records.append(_stating("seq", item.first))
            records.append(_stating("lost" if item.overwritten else "unused", item.count))
            continue
        if item.boot != boot:
            boot = item.boot
            records.append(_stating("boot", boot))
        begin = _stating("seq", item.seq)
        if item.measured_at is not None or base_time is not None:
            base_time = item.measured_at
            begin[_BT] = _seconds(base_time)
        records += [begin, _stating("mono", item.mono_ms)]
        if item.clock_set is not clock:
            clock = item.clock_set
            records.append({_N: "clock", _VB: clock})
        records += [_stating(kind.value, value) for kind, value in item.values.items()]
        if item.quality is not None:
            records.append(_stating("quality", item.quality))
        if item.contact is not None:
            records.append({_N: "contact", _VB: item.contact})
    return cbor.encode(records)


def encode_ack(device: DeviceId, ack: Ack) -> bytes:
    """Write an acknowledgement, to be sealed for the device."""
    return cbor.encode(
        [{_BN: base_name(device), _BT: _seconds(ack.at), **_stating("ack", ack.committed)}]
    )


def decode_ack(content: bytes, device: DeviceId) -> Ack:
    """Read an acknowledgement as our firmware does.

    Raises:
        DecodeError: as ``decode_pack``.
    """
    found: Ack | None = None
    for name, record in _records(content, device, timed="ack"):
        if name == "ack":
            at = _instant(record.get(_BT, 0))
            if found is not None or at is None:
                raise _bad_pack("an acknowledgement is stated once, with a base time")
            found = Ack(_count(record), at)
    if found is None:
        raise _bad_pack("the acknowledgement is missing")
    return found


@dataclass(slots=True)
class _Draft:
    """An item whose records are still coming in."""

    seq: int
    states_time: bool
    names: set[str] = field(default_factory=set)
    mono_ms: int | None = None
    judged: dict[Kind, Decimal | Reason] = field(default_factory=dict)
    quality: int | None = None
    contact: bool | None = None
    gap: Gap | None = None


class _PackReader:
    """The state machine over the records of a pack; its rules are at the top of this file."""

    def __init__(self) -> None:
        self._oldest: int | None = None
        self._boot: int | None = None
        self._sent: tuple[int, int] | None = None
        self._clock: bool | None = None
        self._base_time: datetime | None = None
        self._next_seq = 0
        self._draft: _Draft | None = None
        self._items: list[Item | Gap] = []

    def take(self, name: str, record: _Record) -> None:
        """Go on by one record."""
        match name:
            case "oldest":
                if self._oldest is not None:
                    raise _bad_pack("the oldest record is stated twice")
                self._oldest = _count(record)
            case "boot":
                if self._oldest is None or (self._boot is not None and self._sent is None):
                    raise _bad_pack("oldest, boot and sent are stated in this order")
                self._end_item()
                self._boot = _count(record, _UINT32)
            case "sent":
                if self._sent is not None or self._boot is None:
                    raise _bad_pack("oldest, boot and sent are stated in this order")
                self._sent = self._boot, _monotonic_ms(record)
            case "seq":
                self._end_item()
                self._begin_item(record)
            case _ if name in _ITEM_NAMES:
                self._continue_item(name, record)

    def finish(self, device: DeviceId) -> Pack:
        """The pack, when all records are taken."""
        self._end_item()
        if self._oldest is None or self._sent is None:
            raise _bad_pack("oldest, boot or sent is missing")
        return Pack(device, self._oldest, *self._sent, tuple(self._items))

    def _begin_item(self, record: _Record) -> None:
        seq = _count(record)
        if self._sent is None:
            raise _bad_pack("an item stands before oldest, boot and sent are stated")
        if seq < self._next_seq:
            raise _bad_pack("sequence numbers do not increase")
        if len(self._items) == MAX_ITEMS:
            raise _bad_pack(f"there are more than {MAX_ITEMS} items")
        if _BT in record:
            self._base_time = _instant(record[_BT])
        self._next_seq = seq + 1
        self._draft = _Draft(seq, states_time=_BT in record)

    def _continue_item(self, name: str, record: _Record) -> None:
        draft = self._draft
        if draft is None or draft.gap is not None:
            raise _bad_pack("a statement about a reading stands outside of one")
        if name in draft.names:
            raise _bad_pack("an item states the same thing twice")
        draft.names.add(name)
        match name:
            case "mono":
                draft.mono_ms = _monotonic_ms(record)
            case "clock":
                self._clock = _truth(record)
            case "quality":
                draft.quality = _quality(record)
            case "contact":
                draft.contact = _truth(record)
            case "lost" | "unused":
                draft.gap = _gap(draft, record, overwritten=name == "lost")
                self._next_seq = draft.seq + draft.gap.count
            case _:
                kind = _KIND_BY_NAME[name]
                draft.judged[kind] = _judge(kind, record)

    def _end_item(self) -> None:
        draft, self._draft = self._draft, None
        if draft is not None:
            self._items.append(self._reading(draft) if draft.gap is None else draft.gap)

    def _reading(self, draft: _Draft) -> Item:
        if self._boot is None or draft.mono_ms is None or self._clock is None:
            raise _bad_pack("a reading has no monotonic time or no state of the clock")
        if self._sent is not None and self._boot == self._sent[0] and draft.mono_ms > self._sent[1]:
            raise _bad_pack("a reading was measured after its pack was sent")
        timed = self._base_time is not None
        if timed != self._clock or (timed and not draft.states_time):
            raise _bad_pack("the base time of a reading does not fit the state of the clock")
        values, rejected = part(draft.judged)
        if not values and draft.contact is not False:
            missing = {kind: Reason.MISSING for kind in REQUIRED if kind not in draft.judged}
            values, rejected = part(draft.judged | missing)
        return Item(
            draft.seq,
            self._boot,
            draft.mono_ms,
            self._base_time,
            self._clock,
            values,
            rejected,
            draft.quality,
            draft.contact,
        )


def _records(content: bytes, device: DeviceId, *, timed: str) -> Iterator[tuple[str, _Record]]:
    """The records of a pack and their names, with all that SenML itself asks for checked.

    Args:
        content: the pack.
        device: whose base name the pack must carry.
        timed: name of the records that may carry a base time.
    """
    records = cbor.decode(content)
    if not isinstance(records, list):
        raise _not_senml()
    expected = base_name(device)
    named = False
    for record in records:
        if not isinstance(record, dict):
            raise _not_senml()
        named = named or _BN in record
        if not named:
            raise _bad_pack("the first record has no base name")
        name = record.get(_N, "")
        if not isinstance(name, str):
            raise _bad_pack("a name is no text")
        if name.endswith("_"):
            raise _not_understood()
        if not record.keys() <= _USUAL_LABELS:
            _check_labels(record, expected, timed=name == timed)
        elif _V in record and _VB in record:
            raise _bad_pack("a record has two values")
        yield name, record


def _check_labels(record: _Record, expected: str, *, timed: bool) -> None:
    """Refuse what would make a record mean something else than we read."""
    # "Implementations MUST ignore fields they don't recognize unless that field has a label name
    # that ends with the '_' character" (RFC 8428, section 4.4).
    if any(isinstance(label, str) and label.endswith("_") for label in record):
        raise _not_understood()
    version = record.get(_BVER, SENML_VERSION)
    if type(version) is not int or version != SENML_VERSION:
        raise _not_understood()
    if record.get(_BN, expected) != expected:
        raise DecodeError(
            "The message names another device than its topic: check the device's settings, and "
            "that nobody sends in its name.",
            code="wrong_device",
        )
    if not _UNWANTED_LABELS.isdisjoint(record):
        raise _bad_pack("a record uses a base unit, value or sum, or a time of its own")
    if _BT in record and not timed:
        raise _bad_pack("a base time stands in the wrong place")
    if len(_VALUE_LABELS & record.keys()) > 1:
        raise _bad_pack("a record has two values")


def _judge(kind: Kind, record: _Record) -> Decimal | Reason:
    unit = MEASURES[kind].unit
    if record.get(_U, unit) != unit:
        return Reason.WRONG_UNIT
    stated = record.get(_V)
    if isinstance(stated, (int, float)) and not isinstance(stated, bool):
        stated = Decimal(stated)
    return judge(kind, stated)


def _gap(draft: _Draft, record: _Record, *, overwritten: bool) -> Gap:
    count = _count(record)
    if count == 0 or draft.seq + count - 1 not in _COUNTS or len(draft.names) > 1:
        raise _bad_pack("a gap is not a number of records and nothing else")
    return Gap(draft.seq, count, overwritten)


def _quality(record: _Record) -> int | None:
    """Not worth losing the values for: one that cannot be is as good as none."""
    stated = record.get(_V)
    if type(stated) is int and stated in _QUALITIES and record.get(_U, "%") == "%":
        return stated
    return None


def _count(record: _Record, allowed: range = _COUNTS) -> int:
    stated = record.get(_V)
    if type(stated) is not int or stated not in allowed:
        raise _bad_pack("a number that counts is not an integer of the right size")
    return stated


def _monotonic_ms(record: _Record) -> int:
    if record.get(_U, "ms") != "ms":
        raise _bad_pack("monotonic time is not in milliseconds")
    return _count(record, _MONOTONIC_MS)


def _truth(record: _Record) -> bool:
    stated = record.get(_VB)
    if not isinstance(stated, bool):
        raise _bad_pack("a truth value is something else")
    return stated


def _instant(stated: cbor.Value) -> datetime | None:
    """A base time to the millisecond, half to even; ``None`` for 0, "not known"."""
    if isinstance(stated, bool) or not isinstance(stated, (int, float, Decimal)):
        raise _bad_pack("a time is no number")
    seconds = Decimal(stated)
    if not seconds:
        return None
    if not seconds.is_finite():
        raise _bad_pack("a time is no number")
    since_epoch_ms = int(_EXACT.multiply(seconds, 1000).to_integral_value(ROUND_HALF_EVEN))
    if since_epoch_ms not in _INSTANTS_MS:
        raise _bad_pack("a time is relative, or beyond the year 9999")
    return _EPOCH + timedelta(milliseconds=since_epoch_ms)


def _seconds(at: datetime | None) -> Decimal | int:
    """``_instant`` the other way round."""
    return 0 if at is None else Decimal(f"{(at - _EPOCH) // _MILLISECOND}E-3")


def _stating(name: str, value: Decimal | int) -> _Record:
    if isinstance(value, Decimal) and value == value.to_integral_value():
        value = int(value)
    return {_N: name, _V: value}


def _not_senml() -> DecodeError:
    return DecodeError(
        "The message is not a list of SenML records: check the device's firmware.",
        code="not_senml",
    )


def _not_understood() -> DecodeError:
    return DecodeError(
        "The message uses what must be understood and is not: upgrade FAJMA, or check the "
        "device's firmware.",
        code="not_understood",
    )


def _bad_pack(why: str) -> DecodeError:
    return DecodeError(
        f"The message is not built as it must be ({why}): check the device's firmware.",
        code="bad_pack",
    )
