"""A doctor in a real browser (matrix-js-sdk, rust crypto) reads what our bots send."""

from __future__ import annotations

from pathlib import Path

from fajma.events import ALARM, VITALS, VITALS_BATCH, AlarmBlock, Vitals, VitalsBatch
from fajma.vitals import Kind
from tests.browser.doctor_page import BrowserDoctor, SeenEvent
from tests.e2e.ward import BREATHLESS, WELL, Ward, milliseconds, series

SCREENSHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"


async def test_the_browser_decrypts_state_batches_and_alarm_and_finds_nothing_to_warn_about(
    ward: Ward,
) -> None:
    localpart, mxid, password = await ward.account("dr.browser")
    async with BrowserDoctor(ward.clinic.synapse.base_url, localpart, password) as doctor:
        await doctor.ready()
        bedside = await ward.admit(mxid)
        await doctor.joined(bedside.room_id)
        async with ward.monitor(bedside) as monitor:
            await monitor.send(WELL, WELL, *[BREATHLESS] * 4)
            last = monitor.sent[-1]

            def is_ours(event: SeenEvent, kind: str) -> bool:
                return event.room_id == bedside.room_id and event.type == kind

            async def state_of(at_ms: int) -> SeenEvent:
                return await doctor.wait_for(
                    lambda event: (
                        is_ours(event, VITALS)
                        and milliseconds(
                            Vitals.from_content(event.content).latest[Kind.SPO2].measured_at
                        )
                        == at_ms
                    )
                )

            state = await state_of(last.at_ms)
            alarm = await doctor.wait_for(
                lambda event: is_ours(event, "m.room.message") and ALARM in event.content
            )
            await doctor.wait_for(
                lambda event: (
                    is_ours(event, VITALS_BATCH)
                    and last.at_ms in times(VitalsBatch.from_content(event.content))
                )
            )
            await monitor.send(*[WELL] * 5)
            await doctor.wait_for(
                lambda event: (
                    ALARM in event.content
                    and AlarmBlock.from_content(event.content[ALARM]).state == "recovered"
                )
            )
            await state_of(monitor.sent[-1].at_ms)
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        picture = SCREENSHOTS / "doctor.png"
        picture.unlink(missing_ok=True)
        await doctor.screenshot(picture)

        assert state.state_key == bedside.patient
        shown = Vitals.from_content(state.content)
        assert {kind: one.value for kind, one in shown.latest.items()} == BREATHLESS
        assert alarm.content["m.mentions"] == {"user_ids": sorted([*bedside.clinicians])}
        block = AlarmBlock.from_content(alarm.content[ALARM])
        assert (block.state, block.kind, block.patient) == ("started", Kind.SPO2, bedside.patient)
        ours = [event for event in doctor.events if event.room_id == bedside.room_id]
        from_bots = [
            event for event in ours if event.sender.startswith("@fajma") and is_clinical(event)
        ]
        assert {event.sender for event in from_bots} == {
            ward.clinic.mxid("fajma-vitals"),
            ward.clinic.mxid("fajma-alerts"),
        }
        assert {(event.encrypted, event.shield_colour) for event in from_bots} == {(True, "NONE")}
        found = [
            (round(sample.measured_at.timestamp() * 1000), sample.value)
            for event in ours
            if event.type == VITALS_BATCH and not event.content.get("history")
            for sample in VitalsBatch.from_content(event.content).samples[Kind.SPO2]
        ]
        assert found == series(monitor.sent)[Kind.SPO2][: len(found)]
        assert len(found) >= 6
        # Element shows no event later that failed first: nothing may fail.
        assert doctor.failures == ()
        assert picture.stat().st_size > 10_000


def is_clinical(event: SeenEvent) -> bool:
    return event.type in {VITALS, VITALS_BATCH} or ALARM in event.content


def times(batch: VitalsBatch) -> set[int]:
    return {
        milliseconds(sample.measured_at) for samples in batch.samples.values() for sample in samples
    }


async def test_a_doctor_whose_first_login_comes_after_the_invitation_reads_from_then_on(
    ward: Ward,
) -> None:
    localpart, mxid, password = await ward.account("dr.demo")
    bedside = await ward.admit(mxid)
    async with ward.monitor(bedside) as monitor:
        await monitor.send(WELL, WELL)
        await ward.all_published(bedside.room_id, monitor.sent)
        async with BrowserDoctor(ward.clinic.synapse.base_url, localpart, password) as doctor:
            await doctor.ready()

            def ours(event: SeenEvent, kind: str) -> bool:
                return event.room_id == bedside.room_id and event.type == kind

            await doctor.wait_for(lambda event: ours(event, VITALS))
            await monitor.send(*[BREATHLESS] * 4)
            last = monitor.sent[-1].at_ms
            await doctor.wait_for(
                lambda event: (
                    ours(event, VITALS_BATCH)
                    and last in times(VitalsBatch.from_content(event.content))
                )
            )
            await doctor.wait_for(
                lambda event: ours(event, "m.room.message") and ALARM in event.content
            )
