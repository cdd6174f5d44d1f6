"""A patient's consents: given, withdrawn, read."""

from __future__ import annotations

from appservice.api.declare import Call, Route
from appservice.api.models import ConsentAnswer, ConsentRequest, ConsentsAnswer
from appservice.api.permissions import Permission
from appservice.api.problems import not_found
from fajma.store import Records
from fajma.store.consents import Consent


class ConsentRoutes:
    """Consents."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def routes(self) -> list[Route]:
        """Their declarations."""
        read, write = Permission.READ_CONSENTS, Permission.WRITE_CONSENTS
        one = "/patients/{patient}/consents"
        return [
            Route("GET", one, read, "A patient's consents", self._all, ConsentsAnswer),
            Route("POST", one, write, "The patient agrees", self._give, ConsentAnswer,
                  ConsentRequest, status=201),
            Route("POST", f"{one}/{{consent}}/withdraw", write, "The patient agrees no more",
                  self._withdraw, ConsentAnswer),
        ]  # fmt: skip

    async def _all(self, call: Call) -> ConsentsAnswer:
        await self._require(call)
        found = await self._records.consents.of(call.patient)
        return ConsentsAnswer(consents=[_consent(one) for one in found])

    async def _give(self, call: Call) -> ConsentAnswer:
        await self._require(call)
        body = call.sent(ConsentRequest)
        async with self._records.store.transaction() as connection:
            given = await self._records.consents.give(
                connection,
                call.patient,
                body.purpose,
                to=call.caller.id,
                note=body.note,
                now=call.now,
            )
            await self._records.audit.note(
                connection,
                actor=call.caller.id,
                action="consent.give",
                subject=call.patient,
                now=call.now,
                consent=given.id,
                purpose=given.purpose.value,
            )
        return _consent(given)

    async def _withdraw(self, call: Call) -> ConsentAnswer:
        async with self._records.store.transaction() as connection:
            is_new = await self._records.consents.withdraw(
                connection, call.patient, call.consent, to=call.caller.id, now=call.now
            )
            if is_new:
                await self._records.audit.note(
                    connection,
                    actor=call.caller.id,
                    action="consent.withdraw",
                    subject=call.patient,
                    now=call.now,
                    consent=call.consent,
                )
        consent = await self._records.consents.get(call.patient, call.consent)
        if consent is None:
            raise not_found()
        return _consent(consent)

    async def _require(self, call: Call) -> None:
        if await self._records.patients.get(call.patient) is None:
            raise not_found()


def _consent(consent: Consent) -> ConsentAnswer:
    return ConsentAnswer(
        consent=consent.id,
        purpose=consent.purpose,
        given_at=consent.given_at,
        given_to=consent.given_to,
        withdrawn_at=consent.withdrawn_at,
        withdrawn_to=consent.withdrawn_to,
        note=consent.note,
    )
