"""Every repository over one open database: what the parts of FAJMA are handed."""

from __future__ import annotations

from functools import partial

from fajma.duty import Roster, ringing
from fajma.sealing import SiteKey
from fajma.store.alarms import AlarmStates, Outbox
from fajma.store.audit import Audit
from fajma.store.consultations import Consultations
from fajma.store.database import Store
from fajma.store.deadman import Switches
from fajma.store.decisions import Decisions
from fajma.store.devices import Devices
from fajma.store.facts import Facts
from fajma.store.followers import Feeds, Followers
from fajma.store.heartbeats import Heartbeats
from fajma.store.keys import PatientKeys
from fajma.store.leases import Lease, Leases
from fajma.store.maintenance import Maintenances
from fajma.store.orders import OrdersSeen
from fajma.store.outages import Outages
from fajma.store.patients import Patient, Patients
from fajma.store.people import People
from fajma.store.pins import Audience, Pins
from fajma.store.quarantine import Quarantine
from fajma.store.readings import Readings
from fajma.store.tally import Tally
from fajma.store.wards import Ward, Wards
from fajma.store.warnings import About, Warnings
from fajma.store.watching import Watching


class Records:
    """The repositories, sharing one database and one site key."""

    def __init__(self, store: Store, site_key: SiteKey) -> None:
        self.store = store
        self.site_key = site_key
        keys = PatientKeys(store, site_key)
        self.facts = Facts(store, keys)
        self.patients = Patients(store, keys, site_key, self.facts)
        self.consultations = Consultations(store)
        self.devices = Devices(store, site_key, self.facts)
        self.readings = Readings(store, keys)
        self.quarantine = Quarantine(store, site_key.site)
        self.tally = Tally(store)
        self.followers = Followers(store)
        self.feeds = Feeds(store)
        self.watching = Watching(store)
        self.alarm_states = AlarmStates(store, keys)
        self.outages = Outages(store)
        self.decisions = Decisions(store, keys)
        self.outbox = Outbox(store, keys, site_key)
        self.wards = Wards(store)
        self.people = People(store, site_key)
        self.pins = Pins(store)
        self.audience = Audience(store)
        self.warnings = Warnings(store)
        self.orders_seen = OrdersSeen(store)
        self.audit = Audit(store, site_key)
        self.leases = Leases(store)
        self.heartbeats = Heartbeats(store)
        self.switches = Switches(store)
        self.maintenance = Maintenances(store, site_key)

    def under(self, lease: Lease) -> Records:
        """The same records for who works under a lease: once it is lost, nothing is committed.

        That is true of every ``store.transaction``. A single statement outside of one is not held
        back.
        """
        return Records(self.store.fenced(partial(self.leases.fence, lease)), self.site_key)

    async def on_call(self, ward: Ward) -> frozenset[str]:
        """Who of a ward's team is on duty, unless nobody on duty can be reached."""
        roster = await self._reachable(ward)
        return frozenset({one.account for one in await self.people.team(ward.id)}) & set(
            roster.accounts
        )

    async def called(self, ward: Ward) -> frozenset[str]:
        """Whose phones ring: who is on call, or all of the team when nobody is."""
        team = [one.account for one in await self.people.team(ward.id)]
        return ringing(await self._reachable(ward), team)

    async def patients_of(self, ward: Ward) -> list[Patient]:
        """The patients for whom a ward's team answers, by bed."""
        found = []
        for patient in await self.patients.all():
            responsible = await self.wards.responsible(patient.key)
            if responsible is not None and responsible.id == ward.id:
                found.append(patient)
        return found

    async def _reachable(self, ward: Ward) -> Roster:
        nobody = await self.warnings.is_open(About.NOBODY_REACHABLE, ward.id)
        return Roster() if nobody else ward.roster
