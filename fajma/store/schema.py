"""Numbered upgrades of our tables.

An upgrade, once released, is never edited: write the next one. ``sealed`` columns hold what
``fajma.sealing`` made; the other columns are identifiers and times (milliseconds since 1970).
"""

from __future__ import annotations

from collections.abc import Sequence

from mautrix.util.async_db import Connection, Scheme, UpgradeTable

upgrade_table = UpgradeTable(version_table_name="fajma_version", database_name="fajma")


def _register(statements: Sequence[str], description: str) -> None:
    """The next upgrade: these statements, in order."""

    async def upgrade(connection: Connection, _: Scheme) -> None:
        for statement in statements:
            await connection.execute(statement)

    upgrade_table.register(upgrade, description=description)


_V1 = (
    # A patient is a local record; a Matrix account is optional.
    """CREATE TABLE patient (
        patient_key TEXT PRIMARY KEY,
        number_fingerprint BYTEA NOT NULL UNIQUE,
        account TEXT,
        sealed BYTEA NOT NULL
    )""",
    # Apart from the data and left out of long-lived backups (ADR 0004): without its row here,
    # everything sealed for the patient is unreadable.
    """CREATE TABLE patient_key (
        patient_key TEXT PRIMARY KEY,
        wrapped BYTEA NOT NULL
    )""",
    """CREATE TABLE consultation (
        consultation_id TEXT PRIMARY KEY,
        patient_key TEXT NOT NULL REFERENCES patient (patient_key),
        room_id TEXT UNIQUE,
        status TEXT NOT NULL,
        language TEXT NOT NULL,
        time_zone TEXT NOT NULL,
        opened_at BIGINT NOT NULL
    )""",
    """CREATE TABLE consultation_clinician (
        consultation_id TEXT NOT NULL REFERENCES consultation (consultation_id),
        account TEXT NOT NULL,
        PRIMARY KEY (consultation_id, account)
    )""",
    # Who wore which monitor when; linked_to is NULL while it is worn.
    """CREATE TABLE device_link (
        device_id TEXT NOT NULL,
        consultation_id TEXT NOT NULL REFERENCES consultation (consultation_id),
        patient_key TEXT NOT NULL REFERENCES patient (patient_key),
        linked_from BIGINT NOT NULL,
        linked_to BIGINT,
        PRIMARY KEY (device_id, linked_from)
    )""",
    # The last position given out in each log; its row is locked until the commit (ADR 0003).
    """CREATE TABLE log_head (
        log TEXT PRIMARY KEY,
        position BIGINT NOT NULL
    )""",
    "INSERT INTO log_head (log, position) VALUES ('readings', 0), ('outbox', 0)",
    """CREATE TABLE reading (
        position BIGINT PRIMARY KEY,
        device_id TEXT NOT NULL,
        record BYTEA NOT NULL,
        patient_key TEXT NOT NULL,
        measured_at BIGINT NOT NULL,
        received_at BIGINT NOT NULL,
        sealed BYTEA NOT NULL,
        UNIQUE (device_id, record)
    )""",
    "CREATE INDEX reading_of_patient ON reading (patient_key, position)",
    """CREATE TABLE rejection (
        reason TEXT PRIMARY KEY,
        count BIGINT NOT NULL
    )""",
    """CREATE TABLE quarantine (
        quarantine_id TEXT PRIMARY KEY,
        reason TEXT NOT NULL,
        received_at BIGINT NOT NULL,
        sealed BYTEA NOT NULL
    )""",
    "CREATE INDEX quarantine_by_time ON quarantine (received_at)",
    """CREATE TABLE follower (
        name TEXT PRIMARY KEY,
        position BIGINT NOT NULL
    )""",
    # What has been published of one consultation; pending is set before a send whose outcome
    # may stay unknown, so that the same send is repeated and not another.
    """CREATE TABLE feed (
        consultation_id TEXT PRIMARY KEY REFERENCES consultation (consultation_id),
        published BIGINT NOT NULL,
        pending BIGINT,
        anchor_event TEXT,
        anchor_day TEXT
    )""",
    """CREATE TABLE alarm_state (
        patient_key TEXT PRIMARY KEY,
        changed_at BIGINT NOT NULL,
        sealed BYTEA NOT NULL
    )""",
    """CREATE TABLE outbox (
        position BIGINT PRIMARY KEY,
        delivery_id TEXT NOT NULL UNIQUE,
        room_id TEXT NOT NULL,
        patient_key TEXT NOT NULL,
        created_at BIGINT NOT NULL,
        event_id TEXT,
        sealed BYTEA NOT NULL
    )""",
    "CREATE INDEX outbox_waiting ON outbox (position) WHERE event_id IS NULL",
)

_register(_V1, "Patients, consultations, readings log, alarms, outbox")

_V2 = (
    # A team with a room of its own. The roster (who is on duty) holds user ids and times.
    """CREATE TABLE ward (
        ward_id TEXT PRIMARY KEY,
        room_id TEXT UNIQUE,
        language TEXT NOT NULL,
        time_zone TEXT NOT NULL,
        roster TEXT NOT NULL
    )""",
    """CREATE TABLE staff (
        account TEXT PRIMARY KEY,
        role TEXT NOT NULL,
        ward_id TEXT REFERENCES ward (ward_id),
        language TEXT NOT NULL,
        since BIGINT NOT NULL,
        left_at BIGINT,
        sealed BYTEA NOT NULL
    )""",
    # The cross-signing identity that each person was first met with, or was accepted with later.
    # An empty key trusts nobody.
    """CREATE TABLE pin (
        account TEXT PRIMARY KEY,
        master_key TEXT NOT NULL,
        pinned_at BIGINT NOT NULL
    )""",
    """CREATE TABLE pin_approval (
        account TEXT NOT NULL,
        master_key TEXT NOT NULL,
        approver TEXT NOT NULL,
        approved_at BIGINT NOT NULL,
        PRIMARY KEY (account, master_key, approver)
    )""",
    # Identities of stolen phones: never offered for acceptance again.
    """CREATE TABLE revoked_identity (
        account TEXT NOT NULL,
        master_key TEXT NOT NULL,
        PRIMARY KEY (account, master_key)
    )""",
    # Devices of lost phones: never again, whatever the homeserver lists.
    """CREATE TABLE blocked_device (
        account TEXT NOT NULL,
        device_id TEXT NOT NULL,
        PRIMARY KEY (account, device_id)
    )""",
    # What a person must be told once: see fajma/store/warnings.py.
    """CREATE TABLE warning (
        kind TEXT NOT NULL,
        subject TEXT NOT NULL,
        mark TEXT NOT NULL,
        seen_at BIGINT NOT NULL,
        announced_at BIGINT,
        told_at BIGINT,
        PRIMARY KEY (kind, subject, mark)
    )""",
    # Commands that were carried out or refused, so that none is taken twice.
    """CREATE TABLE order_seen (
        envelope BYTEA PRIMARY KEY,
        seen_at BIGINT NOT NULL
    )""",
    """CREATE TABLE audit (
        position BIGINT PRIMARY KEY,
        at BIGINT NOT NULL,
        actor TEXT NOT NULL,
        action TEXT NOT NULL,
        subject TEXT NOT NULL,
        sealed BYTEA NOT NULL
    )""",
    "INSERT INTO log_head (log, position) VALUES ('audit', 0), ('trust', 0)",
    "ALTER TABLE patient ADD COLUMN ward_id TEXT REFERENCES ward (ward_id)",
    # A monitor may be worn without a consultation.
    """CREATE TABLE device_link_2 (
        device_id TEXT NOT NULL,
        consultation_id TEXT REFERENCES consultation (consultation_id),
        patient_key TEXT NOT NULL REFERENCES patient (patient_key),
        linked_from BIGINT NOT NULL,
        linked_to BIGINT,
        PRIMARY KEY (device_id, linked_from)
    )""",
    """INSERT INTO device_link_2
        SELECT device_id, consultation_id, patient_key, linked_from, linked_to FROM device_link""",
    "DROP TABLE device_link",
    "ALTER TABLE device_link_2 RENAME TO device_link",
    # A delivery has a sender, and may be about no patient (the site key seals it then).
    """CREATE TABLE outbox_2 (
        position BIGINT PRIMARY KEY,
        delivery_id TEXT NOT NULL UNIQUE,
        sender TEXT NOT NULL,
        room_id TEXT NOT NULL,
        patient_key TEXT,
        created_at BIGINT NOT NULL,
        event_id TEXT,
        sealed BYTEA NOT NULL
    )""",
    """INSERT INTO outbox_2
        (position, delivery_id, sender, room_id, patient_key, created_at, event_id, sealed)
        SELECT position, delivery_id, 'fajma-alerts', room_id, patient_key, created_at, event_id,
        sealed FROM outbox""",
    "DROP TABLE outbox",
    "ALTER TABLE outbox_2 RENAME TO outbox",
    "CREATE INDEX outbox_waiting ON outbox (position) WHERE event_id IS NULL",
)

_register(_V2, "Staff, wards, duty, pinned identities, audit")

_V3 = (
    # A keyed fingerprint of what a v2 record says, so that a number that is used again for
    # something else is told from a repetition.
    "ALTER TABLE reading ADD COLUMN trace BYTEA",
    # Who wears what is kept in memory by each ingest; a change has a number, so that it is seen.
    "ALTER TABLE device_link ADD COLUMN changed BIGINT NOT NULL DEFAULT 0",
    "CREATE INDEX device_link_changed ON device_link (changed)",
    "INSERT INTO log_head (log, position) VALUES ('devices', 0)",
    # The pair of keys between a v2 monitor and us, sealed by the site key.
    """CREATE TABLE payload_key (
        device_id TEXT NOT NULL,
        version INTEGER NOT NULL,
        created_at BIGINT NOT NULL,
        retired_at BIGINT,
        sealed BYTEA NOT NULL,
        PRIMARY KEY (device_id, version)
    )""",
    # How far the records of a v2 monitor are settled without gap, and which are beyond.
    """CREATE TABLE device_sequence (
        device_id TEXT PRIMARY KEY,
        contiguous BIGINT NOT NULL,
        beyond TEXT NOT NULL
    )""",
    "ALTER TABLE quarantine ADD COLUMN device_id TEXT NOT NULL DEFAULT ''",
    "CREATE INDEX quarantine_of_device ON quarantine (device_id, received_at)",
    # How often each thing happened, ever: stored, repeated, lost_at_device, ...
    """CREATE TABLE tally (
        name TEXT PRIMARY KEY,
        count BIGINT NOT NULL
    )""",
    # Secrets of the site, wrapped by the key in the site key file, which can so be changed.
    """CREATE TABLE site_secret (
        name TEXT PRIMARY KEY,
        wrapped BYTEA NOT NULL
    )""",
    # Which process does what only one may do.
    """CREATE TABLE lease (
        name TEXT PRIMARY KEY,
        holder TEXT NOT NULL,
        until BIGINT NOT NULL
    )""",
)

_register(_V3, "v2 monitors, who wears what, leases")

_V4 = (
    # Until when somebody watches the vitals in a consultation's room.
    """CREATE TABLE watch (
        consultation_id TEXT PRIMARY KEY REFERENCES consultation (consultation_id),
        until BIGINT NOT NULL
    )""",
    # Where somebody came who is still owed the snapshot and the history.
    """CREATE TABLE newcomer (
        consultation_id TEXT PRIMARY KEY REFERENCES consultation (consultation_id),
        came_at BIGINT NOT NULL
    )""",
    # What the snapshot in the room shows, so that a restart sends none without need: room state
    # is never purged.
    "ALTER TABLE feed ADD COLUMN state_sent_at BIGINT",
    "ALTER TABLE feed ADD COLUMN shown BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE feed ADD COLUMN shown_alarm BIGINT",
    "CREATE INDEX alarm_state_changed ON alarm_state (changed_at)",
    # An account is one patient's: two links at the same moment must not both succeed.
    "CREATE UNIQUE INDEX patient_of_account ON patient (account) WHERE account IS NOT NULL",
)

_register(_V4, "Who watches, who came; what a snapshot shows")

_V5 = (
    # Which devices were signed by the identity that their user showed, by the last answer of the
    # homeserver to whoever of our senders asked (an older answer to one says nothing to another).
    """CREATE TABLE signed_device (
        asked_by TEXT NOT NULL,
        account TEXT NOT NULL,
        device_id TEXT NOT NULL,
        master_key TEXT NOT NULL,
        ed25519 TEXT NOT NULL,
        curve25519 TEXT NOT NULL,
        PRIMARY KEY (asked_by, account, device_id)
    )""",
    # Every key that a device signed by the pinned identity was ever seen with: those of a lost
    # phone are refused under whatever id they come back.
    """CREATE TABLE device_key (
        account TEXT NOT NULL,
        device_id TEXT NOT NULL,
        public_key TEXT NOT NULL,
        PRIMARY KEY (account, device_id, public_key)
    )""",
    # Where in its Megolm session a command stood, so that none is taken after a later one.
    "ALTER TABLE order_seen ADD COLUMN session BYTEA",
    "ALTER TABLE order_seen ADD COLUMN message_index BIGINT",
    "CREATE INDEX order_seen_of_session ON order_seen (session, message_index)",
)

_register(_V5, "Which devices are signed, order of commands")

_V6 = (
    # What the alarm engine is told beside readings, and after which reading.
    """CREATE TABLE fact (
        position BIGINT PRIMARY KEY,
        after_reading BIGINT NOT NULL,
        patient_key TEXT NOT NULL,
        noted_at BIGINT NOT NULL,
        sealed BYTEA NOT NULL
    )""",
    "CREATE INDEX fact_of_patient ON fact (patient_key, position)",
    "INSERT INTO log_head (log, position) VALUES ('facts', 0)",
    # What the engine decided and why, also when it kept silent. Its place is that of the reading
    # and the fact up to which the patient was judged, so that judging again writes it again.
    """CREATE TABLE decision (
        patient_key TEXT NOT NULL,
        reading BIGINT NOT NULL,
        fact BIGINT NOT NULL,
        number INTEGER NOT NULL,
        decided_at BIGINT NOT NULL,
        sealed BYTEA NOT NULL,
        PRIMARY KEY (patient_key, reading, fact, number)
    )""",
    # Wards of which so many patients went silent together that it is told once for all of them.
    """CREATE TABLE outage (
        ward_id TEXT PRIMARY KEY REFERENCES ward (ward_id),
        began_at BIGINT NOT NULL,
        told_at BIGINT NOT NULL,
        patients TEXT NOT NULL,
        members INTEGER NOT NULL
    )""",
    # Whether a worn v2 monitor is connected, as it or the broker last said (1 or 0).
    "ALTER TABLE device_link ADD COLUMN online INTEGER",
    # When the engine must look at a patient at the latest, though nothing comes.
    "ALTER TABLE alarm_state ADD COLUMN due_at BIGINT",
    "CREATE INDEX outbox_of_patient ON outbox (patient_key, position)",
    "CREATE INDEX alarm_state_due ON alarm_state (due_at) WHERE due_at IS NOT NULL",
)

_register(_V6, "Facts, decisions, what is due")

_V7 = (
    # Which rows of the log did not open, so that each is counted and told once.
    """CREATE TABLE unreadable_reading (
        position BIGINT PRIMARY KEY,
        noted_at BIGINT NOT NULL
    )""",
)

_register(_V7, "Readings that do not open")

_V8 = (
    # When each part of ours last said that it works; trouble: why it does not, for operators.
    """CREATE TABLE heartbeat (
        name TEXT PRIMARY KEY,
        at BIGINT NOT NULL,
        trouble TEXT
    )""",
    # The parts of whose silence the rooms were told.
    """CREATE TABLE silent_part (
        name TEXT PRIMARY KEY,
        told_at BIGINT NOT NULL
    )""",
    # The delayed event that the homeserver holds for a room. Mark: what was fixed when it was
    # scheduled, so that a change is seen; maintenance_id: the planned stop that it waits out.
    """CREATE TABLE dead_man (
        room_id TEXT PRIMARY KEY,
        delay_id TEXT NOT NULL,
        mark TEXT NOT NULL,
        maintenance_id TEXT,
        alive_at BIGINT NOT NULL
    )""",
    # Rooms that were told of a silence, since when, and are owed the word that it is over.
    """CREATE TABLE silence (
        room_id TEXT PRIMARY KEY,
        since BIGINT NOT NULL
    )""",
    # Planned stops of the monitoring.
    """CREATE TABLE maintenance (
        maintenance_id TEXT PRIMARY KEY,
        started_at BIGINT NOT NULL,
        until BIGINT NOT NULL,
        ended_at BIGINT,
        told_at BIGINT,
        closed_at BIGINT,
        sealed BYTEA NOT NULL
    )""",
)

_register(_V8, "Signs of life, delayed events, planned stops")

_V9 = (
    # Which delivery a reaction is to.
    "CREATE INDEX outbox_of_event ON outbox (event_id) WHERE event_id IS NOT NULL",
)

_register(_V9, "Answers to alarms")

_V10 = (
    # Who takes part in a consultation as what, in place of consultation_clinician. invited_at: when
    # the homeserver took the invitation; until: when the part ended.
    """CREATE TABLE participant (
        consultation_id TEXT NOT NULL REFERENCES consultation (consultation_id),
        account TEXT NOT NULL,
        role TEXT NOT NULL,
        since BIGINT NOT NULL,
        invited_at BIGINT,
        until BIGINT,
        PRIMARY KEY (consultation_id, account)
    )""",
    """INSERT INTO participant (consultation_id, account, role, since, invited_at)
        SELECT clinician.consultation_id, clinician.account, 'clinician', opened_at, opened_at
        FROM consultation_clinician AS clinician JOIN consultation
        ON consultation.consultation_id=clinician.consultation_id""",
    "DROP TABLE consultation_clinician",
    "CREATE INDEX participant_of_account ON participant (account)",
    # revision grows with each change of what the room must show; shown is the one that it shows.
    "ALTER TABLE consultation ADD COLUMN revision BIGINT NOT NULL DEFAULT 1",
    "ALTER TABLE consultation ADD COLUMN shown BIGINT NOT NULL DEFAULT 0",
    "UPDATE consultation SET shown=1 WHERE status='open'",
    "ALTER TABLE consultation ADD COLUMN booked_for BIGINT",
    # When the patient asked to be let in, and was: only then the patient's account may read.
    "ALTER TABLE consultation ADD COLUMN asked_at BIGINT",
    "ALTER TABLE consultation ADD COLUMN admitted_at BIGINT",
    "UPDATE consultation SET admitted_at=opened_at",
    "ALTER TABLE consultation ADD COLUMN ended_at BIGINT",
    "CREATE INDEX consultation_of_patient ON consultation (patient_key)",
    # Who signed the summary of a consultation.
    """CREATE TABLE signature (
        consultation_id TEXT NOT NULL REFERENCES consultation (consultation_id),
        account TEXT NOT NULL,
        signed_at BIGINT NOT NULL,
        PRIMARY KEY (consultation_id, account)
    )""",
    # A patient's own chat with us, in which he asks to be let in.
    """CREATE TABLE waiting_chat (
        room_id TEXT PRIMARY KEY,
        account TEXT NOT NULL
    )""",
    # The Matrix space in which a ward's team finds its rooms.
    "ALTER TABLE ward ADD COLUMN space_id TEXT",
)

_register(_V10, "Life of a consultation, its participants, waiting, spaces")

_V11 = (
    # What was ordered in a room and is carried out by the application service. Sealed: what the
    # command named, NULL once it has ended. told_at: when the room was told that it takes longer.
    """CREATE TABLE errand (
        errand_id TEXT PRIMARY KEY,
        position BIGINT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        room_id TEXT NOT NULL,
        who TEXT NOT NULL,
        asked_at BIGINT NOT NULL,
        sealed BYTEA,
        told_at BIGINT,
        ended_at BIGINT,
        outcome TEXT
    )""",
    "CREATE INDEX errand_waiting ON errand (room_id, position) WHERE ended_at IS NULL",
    "CREATE INDEX errand_proposed ON errand (room_id, asked_at) WHERE outcome='proposed'",
    "INSERT INTO log_head (log, position) VALUES ('errands', 0)",
)

_register(_V11, "Errands")

_V12 = (
    # Keys of hospital software; the key itself is kept nowhere.
    """CREATE TABLE api_key (
        key_id TEXT PRIMARY KEY,
        fingerprint BYTEA NOT NULL UNIQUE,
        scopes TEXT NOT NULL,
        created_at BIGINT NOT NULL,
        expires_at BIGINT NOT NULL,
        revoked_at BIGINT
    )""",
    # Somebody signed in at the REST API, with the key of a device of his.
    """CREATE TABLE api_session (
        session_id TEXT PRIMARY KEY,
        account TEXT NOT NULL,
        device_id TEXT NOT NULL,
        ed25519 TEXT NOT NULL,
        created_at BIGINT NOT NULL,
        ended_at BIGINT
    )""",
    # Every refresh token of a session; one that is used twice was stolen from somebody.
    """CREATE TABLE api_refresh (
        fingerprint BYTEA PRIMARY KEY,
        session_id TEXT NOT NULL REFERENCES api_session (session_id),
        expires_at BIGINT NOT NULL,
        used_at BIGINT
    )""",
    "CREATE INDEX api_refresh_of_session ON api_refresh (session_id)",
    # Matrix OpenID tokens that were taken: each counts once.
    """CREATE TABLE openid_taken (
        fingerprint BYTEA PRIMARY KEY,
        taken_at BIGINT NOT NULL
    )""",
    # What was answered under an Idempotency-Key, and a keyed fingerprint of what was asked.
    """CREATE TABLE api_answer (
        fingerprint BYTEA PRIMARY KEY,
        asked BYTEA NOT NULL,
        answered_at BIGINT NOT NULL,
        status INTEGER NOT NULL,
        sealed BYTEA NOT NULL
    )""",
    "CREATE INDEX api_answer_by_time ON api_answer (answered_at)",
    # What a patient has agreed to, and no longer.
    """CREATE TABLE consent (
        consent_id TEXT PRIMARY KEY,
        patient_key TEXT NOT NULL REFERENCES patient (patient_key),
        purpose TEXT NOT NULL,
        given_at BIGINT NOT NULL,
        given_to TEXT NOT NULL,
        withdrawn_at BIGINT,
        withdrawn_to TEXT,
        sealed BYTEA NOT NULL
    )""",
    "CREATE INDEX consent_of_patient ON consent (patient_key, given_at)",
)

_register(_V12, "REST API: keys, sessions, answers; consents")

_V13 = (
    # When somebody took care of an outage, as far as it reached then.
    "ALTER TABLE outage ADD COLUMN answered_at BIGINT",
)

_register(_V13, "Answers to outages")
