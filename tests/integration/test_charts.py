"""Promised charts: drawn from the log, sent after their alarm, and never in anybody's way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from io import BytesIO
from typing import Any, cast

import pytest
from mautrix.crypto.attachments import decrypt_attachment, encrypt_attachment
from PIL import Image
from structlog.testing import capture_logs

from appservice.charts import GIVE_UP, RETRY, ChartSender
from appservice.sender import Sender
from bots.alerts.chart import HEIGHT, WIDTH
from bots.alerts.illustrator import Illustrator
from bots.alerts.site_rules import SiteRules
from fajma.charts import ChartOrder
from fajma.errors import BugError
from fajma.language import Language
from fajma.store import Records
from fajma.store.alarms import Delivery, SentBy
from fajma.store.consultations import Consultation
from fajma.store.readings import NewReading
from fajma.vitals import Age, Clock, DeviceId, Kind, Reading
from tests.integration.desk import NOON, measure

Admit = Callable[..., Awaitable[Consultation]]
MINE, OTHER = "A4CF12F03B7E", "A4CF12F03B7F"


@dataclass
class Host:
    """``@fajma`` at a homeserver that is a list; knows repeated transactions."""

    sent: dict[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    media: list[bytes] = field(default_factory=list)
    failing: BaseException | None = None

    async def send(
        self, room_id: str, event_type: str, content: Mapping[str, Any], *, transaction_id: str
    ) -> str:
        assert event_type == "m.room.message"
        self._reach()
        self.sent.setdefault(transaction_id, (room_id, content))
        return f"${transaction_id}"

    async def attach(self, data: bytes) -> dict[str, Any]:
        self._reach()
        ciphertext, file = encrypt_attachment(data)
        self.media.append(ciphertext)
        file.url = f"mxc://clinic.test/{len(self.media)}"
        return dict(file.serialize())

    def _reach(self) -> None:
        if self.failing is not None:
            raise self.failing

    def contents(self) -> list[Mapping[str, Any]]:
        return [content for _, content in self.sent.values()]


class Studio:
    """Who draws and who sends, under a clock that stands still or gains with each look."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.ticks = timedelta(0)
        self.now = NOON + timedelta(hours=1)
        self.host = Host()
        illustrator = Illustrator(records, SiteRules())
        self.sender = ChartSender(
            records, cast("Sender", self.host), illustrator.draw, now=self._clock
        )

    def _clock(self) -> datetime:
        self.now += self.ticks
        return self.now

    async def promise(
        self, consultation: Consultation, number: int = 1, *, hours: float = 1, **more: Any
    ) -> Delivery:
        order = ChartOrder(
            since=self.now - timedelta(hours=hours),
            until=self.now,
            language=Language.FRENCH,
            zone="Africa/Dakar",
            **more,
        )
        delivery = order.delivery(
            f"chart-{number}", str(consultation.room_id), consultation.patient, now=self.now
        )
        async with self.records.store.transaction() as connection:
            await self.records.outbox.add(connection, delivery)
        return delivery

    async def waiting(self, consultation: Consultation) -> list[str]:
        return await self.records.outbox.waiting(
            str(consultation.room_id), sender=SentBy.CHARTS
        )  # fmt: skip


@pytest.fixture
async def studio(records: Records) -> Studio:
    return Studio(records)


async def test_a_chart_goes_into_the_room_as_an_encrypted_attachment(
    studio: Studio, admit: Admit
) -> None:
    consultation = await admit(studio.records, MINE)
    await measure(studio.records, consultation, 700)
    await studio.promise(consultation)
    studio.ticks = timedelta(microseconds=1)
    await studio.sender.deliver()
    [content] = studio.host.contents()
    assert (content["msgtype"], content["filename"]) == ("m.image", "chart.png")
    assert content["info"]["mimetype"] == "image/png"
    assert "Lit 1 A.D." in content["body"]
    assert "oxymètres surestiment" in content["body"]
    assert "url" not in content, "nothing is attached in clear"
    [ciphertext] = studio.host.media
    assert b"PNG" not in ciphertext
    key = content["file"]["key"]["k"]
    png = decrypt_attachment(
        ciphertext, key, content["file"]["hashes"]["sha256"], content["file"]["iv"]
    )
    assert Image.open(BytesIO(png)).size == (WIDTH, HEIGHT)
    assert len(png) == content["info"]["size"] < 60_000
    assert await studio.waiting(consultation) == []


async def test_a_chart_waits_for_its_alarm_and_holds_up_no_other(
    studio: Studio, admit: Admit
) -> None:
    first, second = await admit(studio.records, MINE), await admit(studio.records, OTHER)
    alarm = Delivery("alarm", str(first.room_id), first.patient, {"body": "86"}, studio.now)
    async with studio.records.store.transaction() as connection:
        await studio.records.outbox.add(connection, alarm)
    await studio.promise(first, 1, after="alarm")
    await studio.promise(second, 2)
    await studio.sender.deliver()
    assert list(studio.host.sent) == ["chart-2"]
    await studio.records.outbox.delivered("alarm", "$alarm")
    await studio.sender.deliver()
    _, content = studio.host.sent["chart-1"]
    assert content["m.relates_to"] == {"m.in_reply_to": {"event_id": "$alarm"}}


async def test_values_that_were_asked_for_come_as_a_table_then_a_chart_for_who_asked(
    studio: Studio, admit: Admit
) -> None:
    consultation = await admit(studio.records, MINE)
    await measure(studio.records, consultation, 700, value=93)
    await studio.promise(
        consultation, table=True, reply_to="$question", asked_by="@awa:clinic.test"
    )
    await studio.sender.deliver()
    table, picture = studio.host.contents()
    assert table["msgtype"] == "m.notice"
    assert "SpO2 93" in table["body"]
    assert "<td>93</td>" in table["formatted_body"]
    assert "oxymètres surestiment" in table["body"]
    for content in (table, picture):
        assert content["m.relates_to"] == {"m.in_reply_to": {"event_id": "$question"}}
        assert content["m.mentions"] == {"user_ids": ["@awa:clinic.test"]}


async def test_where_no_spo2_is_shown_nothing_is_said_of_oximeters(
    studio: Studio, admit: Admit
) -> None:
    consultation = await admit(studio.records, MINE)
    await studio.promise(consultation, table=True)
    await studio.sender.deliver()
    table, picture = studio.host.contents()
    assert "rien n'a été mesuré" in table["body"]
    assert "oxymètres" not in table["body"] + picture["body"]


async def test_a_day_is_read_page_by_page_each_value_once(studio: Studio, admit: Admit) -> None:
    consultation = await admit(studio.records, MINE)
    await measure(studio.records, consultation, 1300)
    studio.now = NOON + timedelta(hours=2)
    illustrator = Illustrator(studio.records, SiteRules())
    points, _ = await illustrator._points(
        consultation.patient, NOON + timedelta(minutes=10), studio.now
    )
    times = [point.at for point in points[next(iter(points))]]
    assert times == sorted(set(times))
    assert len(times) == 1300 - 120


async def test_what_came_late_is_drawn_as_late(studio: Studio, admit: Admit) -> None:
    consultation = await admit(studio.records, MINE)
    await measure(studio.records, consultation, 10, age=Age.LATE)
    await measure(studio.records, consultation, 10)
    illustrator = Illustrator(studio.records, SiteRules())
    points, _ = await illustrator._points(consultation.patient, NOON, studio.now)
    assert [point.late for point in next(iter(points.values()))] == [True] * 10 + [False] * 10


async def test_a_reading_whose_clock_is_ahead_is_drawn_when_it_came(
    studio: Studio, admit: Admit
) -> None:
    consultation = await admit(studio.records, MINE)
    ahead = NOON + timedelta(minutes=4)
    values = {Kind.SPO2: Decimal(86)}
    reading = Reading(DeviceId(MINE), ahead, NOON, Clock.DEVICE, values)
    async with studio.records.store.transaction() as connection:
        await studio.records.readings.append(
            connection, [NewReading(bytes(16), consultation.patient, reading)]
        )
    illustrator = Illustrator(studio.records, SiteRules())
    points, _ = await illustrator._points(consultation.patient, NOON - timedelta(hours=1), NOON)
    assert [point.at for point in points[Kind.SPO2]] == [NOON]


async def test_a_row_that_does_not_open_leaves_a_gap_and_costs_no_chart(
    studio: Studio, admit: Admit
) -> None:
    consultation = await admit(studio.records, MINE)
    await measure(studio.records, consultation, 20)
    await studio.records.store.db.execute("UPDATE reading SET sealed=$1 WHERE position=7", b"x")
    await studio.promise(consultation)
    await studio.sender.deliver()
    assert len(studio.host.media) == 1


async def test_the_chart_of_an_unusable_pulse_says_so_of_what_was_measured_before_it(
    studio: Studio, admit: Admit
) -> None:
    consultation = await admit(studio.records, MINE)
    values = {Kind.SPO2: Decimal(97), Kind.HEART_RATE: Decimal(80)}
    both = frozenset({Kind.SPO2, Kind.HEART_RATE})
    moments = [NOON + timedelta(seconds=5 * number) for number in range(3)]
    sent = [
        Reading(DeviceId(MINE), moments[0], moments[0], Clock.DEVICE, values),
        Reading(DeviceId(MINE), moments[1], moments[1], Clock.DEVICE, {}, unusable=both),
        Reading(
            DeviceId(MINE),
            moments[2],
            moments[2],
            Clock.DEVICE,
            {Kind.HEART_RATE: Decimal(81)},
            unusable=frozenset({Kind.SPO2}),
        ),
    ]
    async with studio.records.store.transaction() as connection:
        await studio.records.readings.append(
            connection,
            [
                NewReading(number.to_bytes(16, "big"), consultation.patient, one)
                for number, one in enumerate(sent)
            ],
        )
    illustrator = Illustrator(studio.records, SiteRules())
    _, unusable = await illustrator._points(consultation.patient, NOON, studio.now)
    assert unusable == {Kind.SPO2}


async def test_the_caption_of_a_chart_names_its_span_by_the_wards_clock(
    studio: Studio, admit: Admit
) -> None:
    consultation = await admit(studio.records, MINE)
    await measure(studio.records, consultation, 2)
    await studio.promise(consultation)
    await studio.sender.deliver()
    [content] = studio.host.contents()
    assert " · 12:00 \N{EN DASH} 13:00 · " in content["body"]


async def test_a_homeserver_that_is_away_gets_it_later_and_not_every_second(
    studio: Studio, admit: Admit
) -> None:
    consultation = await admit(studio.records, MINE)
    await studio.promise(consultation)
    studio.host.failing = TimeoutError()
    await studio.sender.deliver()
    studio.host.failing = None
    await studio.sender.deliver()
    assert studio.host.media == []
    studio.now += RETRY
    await studio.sender.deliver()
    assert len(studio.host.sent) == 1
    assert await studio.waiting(consultation) == []


async def test_a_chart_that_waited_too_long_is_lost_and_the_log_says_so(
    studio: Studio, admit: Admit
) -> None:
    consultation = await admit(studio.records, MINE)
    await studio.promise(consultation, after="an alarm that never arrives")
    studio.now += GIVE_UP + timedelta(seconds=1)
    with capture_logs() as logs:
        await studio.sender.deliver()
        await studio.sender.deliver()
    assert [one["reason"] for one in logs if one["event"] == "chart_lost"] == ["chart_too_old"]
    assert studio.host.sent == {}
    assert await studio.waiting(consultation) == []


async def test_a_chart_that_cannot_be_drawn_holds_up_no_other(studio: Studio, admit: Admit) -> None:
    first, second = await admit(studio.records, MINE), await admit(studio.records, OTHER)
    await studio.promise(first, 1)
    await studio.promise(second, 2)
    await studio.records.store.db.execute(
        "UPDATE patient SET sealed=$1 WHERE patient_key=$2", b"x", first.patient
    )
    with capture_logs() as logs:
        await studio.sender.deliver()
    assert list(studio.host.sent) == ["chart-2"]
    assert [one["event"] for one in logs if one["log_level"] == "error"] == ["chart_lost"]


def test_what_is_no_chart_order_is_a_bug() -> None:
    other = Delivery("x", "!room:clinic.test", None, {"body": "text"}, NOON, SentBy.CHARTS)
    with pytest.raises(BugError) as caught:
        ChartOrder.of(other)
    assert caught.value.code == "no_chart_order"
