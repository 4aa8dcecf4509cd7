"""The journal's tables. Names and columns are stable: tools read them for past jobs, too.

Every row that jobs, inputs, results or money hang on has a ``crc``: SQLite does not notice bit rot.
Times are ms since the epoch (UTC); structs are MessagePack, ``events.detail`` is JSON.

``open_jobs`` names what a start must read: a job is in it from its acceptance to its last card, so
that finished jobs cost nothing at a start. ``checkpoints`` stands for results of an unfinished job
that its client has acknowledged and that left the disk. ``lines`` is what attempts wrote that have
no result (broker/lines.py); a start does not read it. ``tombstones`` are what is left of jobs that
were pruned.
"""

#: From 4 on the ``crc`` of parcels and results covers their columns, too: see ``records``. From 5
#: on their large bodies may be references: see ``bodies``. From 6 on the first row of a job's
#: parcels may stand for those that have left: see ``records.freed_row``.
SCHEMA_VERSION = 6

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS jobs(
    job INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    submission BLOB NOT NULL,
    name TEXT NOT NULL,
    request_digest TEXT NOT NULL,
    parent INTEGER NOT NULL,
    submitted_ms INTEGER NOT NULL,
    spec BLOB NOT NULL,
    tariff BLOB NOT NULL,
    function BLOB NOT NULL,
    crc INTEGER NOT NULL) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS jobs_submission ON jobs(tenant, submission);
CREATE INDEX IF NOT EXISTS jobs_request ON jobs(tenant, request_digest) WHERE request_digest <> '';
CREATE TABLE IF NOT EXISTS job_states(
    job INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    state TEXT NOT NULL,
    is_final INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    status BLOB NOT NULL,
    crc INTEGER NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS job_states_tenant ON job_states(tenant, job);
CREATE INDEX IF NOT EXISTS job_states_expiry ON job_states(expires_ms) WHERE expires_ms > 0;
CREATE TABLE IF NOT EXISTS open_jobs(job INTEGER PRIMARY KEY) STRICT;
CREATE TABLE IF NOT EXISTS checkpoints(
    job INTEGER PRIMARY KEY,
    upto INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    body BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS parcels(
    job INTEGER NOT NULL,
    first INTEGER NOT NULL,
    count INTEGER NOT NULL,
    codec TEXT NOT NULL,
    crc INTEGER NOT NULL,
    body BLOB NOT NULL) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS parcels_first ON parcels(job, first);
CREATE TABLE IF NOT EXISTS results(
    job INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    first INTEGER NOT NULL,
    count INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    lease_id INTEGER NOT NULL,
    node TEXT NOT NULL,
    codec TEXT NOT NULL,
    wall_us INTEGER NOT NULL,
    cpu_us INTEGER NOT NULL,
    peak_kib INTEGER NOT NULL,
    metering TEXT NOT NULL,
    is_estimated INTEGER NOT NULL,
    amount_ucredits INTEGER NOT NULL,
    ended_ms INTEGER NOT NULL,
    body_bytes INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    header BLOB NOT NULL,
    meter BLOB NOT NULL,
    failures BLOB NOT NULL,
    logs BLOB NOT NULL,
    payload BLOB NOT NULL) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS results_sequence ON results(job, sequence);
CREATE INDEX IF NOT EXISTS results_first ON results(job, first, count);
CREATE TABLE IF NOT EXISTS events(
    seq INTEGER PRIMARY KEY,
    job INTEGER NOT NULL,
    ms INTEGER NOT NULL,
    name TEXT NOT NULL,
    detail TEXT NOT NULL,
    crc INTEGER NOT NULL DEFAULT -1) STRICT;
CREATE INDEX IF NOT EXISTS events_job ON events(job, seq);
CREATE TABLE IF NOT EXISTS outbox(
    sequence INTEGER PRIMARY KEY,
    is_hold INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    entry BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS nodes(
    name TEXT PRIMARY KEY,
    node TEXT NOT NULL,
    pinned_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tombstones(
    job INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    submission BLOB NOT NULL,
    state TEXT NOT NULL,
    finished_ms INTEGER NOT NULL,
    pruned_ms INTEGER NOT NULL) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS tombstones_submission ON tombstones(tenant, submission);
CREATE TABLE IF NOT EXISTS live_workers(
    name TEXT PRIMARY KEY,
    joined_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lines(
    job INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    lease_id INTEGER NOT NULL,
    stream INTEGER NOT NULL,
    at INTEGER NOT NULL,
    upto INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    body BLOB NOT NULL) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS lines_at ON lines(job, idx, lease_id, stream, at);
CREATE TABLE IF NOT EXISTS quarantine(
    table_name TEXT NOT NULL,
    row_key TEXT NOT NULL,
    reason TEXT NOT NULL,
    ms INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY(table_name, row_key)) STRICT;
"""

# Statements of the writer.
ADD_JOB = "INSERT INTO jobs VALUES(?,?,?,?,?,?,?,?,?,?,?)"
ADD_OPEN = "INSERT OR IGNORE INTO open_jobs VALUES(?)"
DROP_OPEN = "DELETE FROM open_jobs WHERE job = ?"
SET_CHECKPOINT = "INSERT OR REPLACE INTO checkpoints VALUES(?,?,?,?)"
DROP_CHECKPOINT = "DELETE FROM checkpoints WHERE job = ?"
SET_STATE = "INSERT OR REPLACE INTO job_states VALUES(?,?,?,?,?,?,?)"
ADD_PARCEL = "INSERT OR IGNORE INTO parcels VALUES(?,?,?,?,?,?)"
ADD_RESULT = "INSERT INTO results VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
ADD_EVENT = "INSERT INTO events(job, ms, name, detail, crc) VALUES(?,?,?,?,?)"
ADD_ENTRY = "INSERT INTO outbox VALUES(?,?,?,?)"
DROP_ENTRY = "DELETE FROM outbox WHERE sequence = ?"
#: the row of a job's parcels that have left: see ``records.freed_row``
SET_FREED = "INSERT OR REPLACE INTO parcels VALUES(?,?,?,?,?,?)"
DROP_PARCEL = "DELETE FROM parcels WHERE rowid = ?"
DROP_ENTRIES = "DELETE FROM outbox WHERE sequence <= ?"
ADD_NODE = "INSERT OR REPLACE INTO nodes VALUES(?,?,?)"
ADD_LIVE = "INSERT OR REPLACE INTO live_workers VALUES(?,?)"
DROP_LIVE = "DELETE FROM live_workers WHERE name = ?"
ADD_QUARANTINE = "INSERT OR IGNORE INTO quarantine VALUES(?,?,?,?,?)"
DROP_RESULT = "DELETE FROM results WHERE job = ? AND sequence = ?"
VOID_RESULT = (
    "UPDATE results SET header = ?, payload = ?, meter = ?, failures = ?, logs = ?, crc = ?,"
    " wall_us = 0, cpu_us = 0, peak_kib = 0, amount_ucredits = 0"
    " WHERE job = ? AND sequence = ?"
)
#: what came again is longer, or the same
ADD_LINES = (
    "INSERT INTO lines VALUES(?,?,?,?,?,?,?,?,?) ON CONFLICT(job, idx, lease_id, stream, at)"
    " DO UPDATE SET upto = excluded.upto, crc = excluded.crc, body = excluded.body"
    " WHERE excluded.upto > upto"
)
#: between the head and the tail of a long stream
TRIM_LINES = (
    "DELETE FROM lines WHERE job = ? AND idx = ? AND lease_id = ? AND stream = ?"
    " AND at >= ? AND upto <= ?"
)
SETTLE_LINES = "DELETE FROM lines WHERE job = ? AND idx = ? AND lease_id = ?"
SET_META = "INSERT OR REPLACE INTO meta VALUES(?,?)"
DROP_META = "DELETE FROM meta WHERE key = ?"
AMEND_CARD = "UPDATE job_states SET status = ?, crc = ? WHERE job = ?"
CLEAR_EXPIRY = "UPDATE job_states SET expires_ms = 0 WHERE job = ?"

ADD_TOMBSTONE = "INSERT OR IGNORE INTO tombstones VALUES(?,?,?,?,?,?)"
DROP_JOB = "DELETE FROM jobs WHERE job = ?"
DROP_STATE = "DELETE FROM job_states WHERE job = ?"
#: what a pruned job leaves besides its tombstone, by table: nothing
PRUNED = (("jobs", DROP_JOB), ("job_states", DROP_STATE), ("checkpoints", DROP_CHECKPOINT))

# Chores: each runs by one chunk at a time until it changes nothing. What they return are
# references of the deleted rows: see ``bodies``.
CHUNK_ROWS = 128
DROP_PARCELS = (
    "DELETE FROM parcels WHERE rowid IN"
    f" (SELECT rowid FROM parcels WHERE job = ? LIMIT {CHUNK_ROWS})"
    " RETURNING iif(length(body) < 64, body, NULL)"
)
DROP_PARCELS_BEFORE = (
    "DELETE FROM parcels WHERE rowid IN (SELECT rowid FROM parcels"
    f" WHERE job = ? AND first >= 0 AND first < ? LIMIT {CHUNK_ROWS})"
    " RETURNING iif(length(body) < 64, body, NULL)"
)
DROP_RESULTS = (
    "DELETE FROM results WHERE rowid IN (SELECT rowid FROM results"
    f" WHERE job = ? AND sequence <= ? LIMIT {CHUNK_ROWS})"
    " RETURNING iif(length(payload) < 64, payload, NULL)"
)

DROP_LINES = (
    f"DELETE FROM lines WHERE rowid IN (SELECT rowid FROM lines WHERE job = ? LIMIT {CHUNK_ROWS})"
)
DROP_EVENTS = (
    "DELETE FROM events WHERE seq IN"
    f" (SELECT seq FROM events WHERE job = ? AND ms < ? ORDER BY seq LIMIT {CHUNK_ROWS})"
)
#: Events have a checksum from version 3 on; -1 is one from before.
HAS_EVENT_CRC = "SELECT 1 FROM pragma_table_info('events') WHERE name = 'crc'"
ADD_EVENT_CRC = "ALTER TABLE events ADD COLUMN crc INTEGER NOT NULL DEFAULT -1"
#: ``open_jobs`` from the jobs themselves: of a file of version 1, and of one that was damaged
LIST_OPEN = (
    "INSERT OR IGNORE INTO open_jobs SELECT job FROM jobs WHERE job NOT IN"
    " (SELECT job FROM job_states WHERE is_final = 1)"
)
