-- What operators need beside the events: who leads, what is parked and why, what was published when, what was asked of the
-- leader by whom; and what the leader needs to keep the ring turning. Nothing here is on the path of an append.

-- -------------------------------------------------------------------------------------------------------- progress

ALTER TABLE outbox.batches
    ADD COLUMN leader text,
    ADD COLUMN ranges jsonb NOT NULL DEFAULT '{}';

COMMENT ON COLUMN outbox.batches.leader IS 'Host and process id of the leader that saved.';
COMMENT ON COLUMN outbox.batches.ranges IS 'Topic -> partition -> [first offset, last offset] of the records acknowledged since the save before.';

-- "When was X published?" is a look-up in ranges of ids that nearly, but not quite, ascend.
CREATE INDEX batches_ids ON outbox.batches USING gist (int8range(first_id, last_id, '[]')) WHERE first_id IS NOT NULL;

-- True if a cursor is past a row: the row was published, or parked, or skipped as published before.
CREATE FUNCTION outbox.is_past(window_from pg_snapshot, window_to pg_snapshot, after_id bigint, xid xid8, id bigint)
RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_visible_in_snapshot(xid, window_from)
    OR (pg_visible_in_snapshot(xid, window_to) AND (after_id IS NULL OR id <= after_id));

-- The advisory lock of a relay: whoever holds it leads.
CREATE FUNCTION outbox.leader_lock(relay text) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN hashtextextended('outbox-relay/leader/' || relay, 0);

-- --------------------------------------------------------------------------------------------------------- parking

-- Events that the leader went past without publishing. `reason` says what is wrong with the event itself; without a reason it
-- is held: sound, but behind an event of the same key that is not published, and order per key comes first.
CREATE TABLE outbox.parked (
    relay        text        NOT NULL,
    id           bigint      NOT NULL,
    event_id     uuid        NOT NULL,
    event_type   text        NOT NULL,
    aggregate_id text        NOT NULL,
    slot         smallint    NOT NULL,
    reason       text,
    attempts     integer     NOT NULL DEFAULT 1,
    parked_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    released_at  timestamptz,
    outcome      text        CHECK (outcome IN ('redriven', 'discarded')),
    command_id   bigint,
    PRIMARY KEY (relay, id),
    CHECK ((released_at IS NULL) = (outcome IS NULL))
);

CREATE INDEX parked_open ON outbox.parked (relay, aggregate_id, id) WHERE released_at IS NULL;
CREATE INDEX parked_slot ON outbox.parked (slot) WHERE released_at IS NULL;
CREATE INDEX parked_event ON outbox.parked (event_id);

COMMENT ON TABLE outbox.parked IS 'Events that the relay went past without publishing: unpublishable ones (reason) and those held behind them (no reason).';
COMMENT ON COLUMN outbox.parked.command_id IS 'What released it: a row of outbox.commands.';

-- -------------------------------------------------------------------------------------------------------- commands

-- What operators ask of the leader, which carries it out through its one producer, so that order and fence hold.
CREATE TABLE outbox.commands (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relay        text        NOT NULL,
    kind         text        NOT NULL CHECK (kind IN ('redrive', 'discard', 'replay')),
    selection    jsonb       NOT NULL CHECK (jsonb_typeof(selection) = 'object'),
    note         text        NOT NULL,
    operator     text        NOT NULL,
    requested_by text        NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Written by the leader.
    started_at   timestamptz,
    after_id     bigint      NOT NULL DEFAULT 0,
    published    bigint      NOT NULL DEFAULT 0,
    finished_at  timestamptz,
    result       text
);

CREATE INDEX commands_open ON outbox.commands (relay, id) WHERE finished_at IS NULL;

COMMENT ON TABLE outbox.commands IS 'Redrives, discards and replays: who asked for what, when, why, and what came of it.';
COMMENT ON COLUMN outbox.commands.requested_by IS 'The database role that asked; operator is the name that the person gave.';
COMMENT ON COLUMN outbox.commands.after_id IS 'Carried out up to this outbox id: a leader that dies in between is continued from here.';

CREATE FUNCTION outbox.request(relay text, kind text, selection jsonb, operator text, note text) RETURNS bigint
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO outbox.commands (relay, kind, selection, operator, note, requested_by)
    VALUES (relay, kind, selection, operator, note, session_user)
    RETURNING id
$$;

-- ---------------------------------------------------------------------------------------------------------- guards

-- A relay that found its cursor on another server than it was saved on. Sticky on purpose: waiting cures nothing, as the new
-- server's transaction ids would pass the old ones one day, and rows would be skipped in silence.
CREATE TABLE outbox.halts (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relay      text        NOT NULL,
    reason     text        NOT NULL,
    halted_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    cleared_at timestamptz,
    cleared_by text,
    cleared_how text
);

CREATE UNIQUE INDEX halts_open ON outbox.halts (relay) WHERE cleared_at IS NULL;

COMMENT ON TABLE outbox.halts IS 'Relays that refuse to run until outbox-relay rebase or adopt.';

-- Records of this outbox on a topic whose event has no row: the server lost commits that it had acknowledged (a failover).
CREATE TABLE outbox.ghosts (
    event_id  uuid        PRIMARY KEY,
    relay     text        NOT NULL,
    topic     text        NOT NULL,
    partition integer     NOT NULL,
    "offset"  bigint      NOT NULL,
    found_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE outbox.ghosts IS 'Published events without a row: the database lost them after it had acknowledged them.';

CREATE TABLE outbox.verifications (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relay      text        NOT NULL,
    since      timestamptz NOT NULL,
    events     bigint      NOT NULL,
    records    bigint      NOT NULL,
    missing    bigint      NOT NULL,
    command_id bigint,
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE outbox.verifications IS 'Comparisons of outbox and topic; missing events are replayed by command_id.';

-- ------------------------------------------------------------------------------------------------------- retention

-- Empties one leaf of the ring, if it may be: it is not today's, its newest row is older than `keep`, every relay is past all of
-- it, and nothing of it is parked. Returns the reason why not, or NULL when it is empty now (`removed` says whether it was not).
--
-- TRUNCATE locks this leaf alone, and gives up soon: a reader queues behind it for no longer. Appends of today go to another leaf.
-- Its bounds are read along indexes, however many rows there are.
CREATE FUNCTION outbox.recycle(slot smallint, keep interval, OUT removed boolean, OUT refused text)
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '50ms'
AS $$
#variable_conflict use_variable
DECLARE
    today  smallint := (floor(extract(epoch FROM clock_timestamp()) / 86400)::bigint % 8)::smallint;
    leaf   text := format('outbox.events_%s', slot);
    newest timestamptz;
    behind text;
BEGIN
    removed := false;
    IF slot NOT BETWEEN 0 AND 7 OR keep < interval '1 hour' OR keep > interval '6 days' THEN
        RAISE EXCEPTION 'outbox.recycle: slot 0 to 7, and between 1 hour and 6 days to keep' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF slot = today THEN
        refused := 'today''s';
        RETURN;
    END IF;
    EXECUTE format('SELECT created_at FROM %s ORDER BY id DESC LIMIT 1', leaf) INTO newest;
    IF newest IS NULL THEN RETURN; END IF;
    IF newest > clock_timestamp() - keep THEN
        refused := 'too young';
        RETURN;
    END IF;
    BEGIN
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', leaf);
    EXCEPTION WHEN lock_not_available THEN
        refused := 'in use';
        RETURN;
    END;
    -- From here on nobody adds to it.
    EXECUTE format('SELECT created_at FROM %s ORDER BY id DESC LIMIT 1', leaf) INTO newest;
    IF newest > clock_timestamp() - keep THEN
        refused := 'too young';
        RETURN;
    END IF;
    IF NOT EXISTS (SELECT FROM outbox.batches) THEN
        refused := 'no relay has ever run';
        RETURN;
    END IF;
    -- Below the oldest transaction that a cursor does not see as finished there is nothing to ask: the rest is a range of an index.
    EXECUTE format(
        'SELECT c.relay FROM outbox.cursors c
         WHERE EXISTS (
             SELECT FROM %s e
             WHERE e.xid >= pg_snapshot_xmin(CASE WHEN c.after_id IS NULL THEN c.window_to ELSE c.window_from END)
               AND NOT outbox.is_past(c.window_from, c.window_to, c.after_id, e.xid, e.id))
         LIMIT 1', leaf) INTO behind;
    IF behind IS NOT NULL THEN
        refused := format('relay %s is not past it', behind);
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM outbox.parked p WHERE p.slot = slot AND p.released_at IS NULL) THEN
        refused := 'something of it is parked';
        RETURN;
    END IF;
    EXECUTE format('TRUNCATE %s', leaf);
    removed := true;
END
$$;

-- Removes progress, released parkings and finished commands that are older than `keep`, at most `chunk` rows of each at a time.
-- The newest row of a relay is its cursor and stays.
CREATE FUNCTION outbox.trim(keep interval, chunk integer) RETURNS bigint
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '50ms'
AS $$
#variable_conflict use_variable
DECLARE
    removed bigint := 0;
    n       bigint;
BEGIN
    IF keep < interval '1 hour' THEN
        RAISE EXCEPTION 'outbox.trim: at least 1 hour to keep' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    DELETE FROM outbox.batches b USING (
        SELECT o.relay, o.seq FROM outbox.cursors c
        CROSS JOIN LATERAL (
            SELECT o.relay, o.seq FROM outbox.batches o
            WHERE o.relay = c.relay AND o.seq < c.seq AND o.saved_at < clock_timestamp() - keep
            ORDER BY o.seq LIMIT chunk
        ) AS o
    ) AS old
    WHERE b.relay = old.relay AND b.seq = old.seq;
    GET DIAGNOSTICS n = ROW_COUNT;
    removed := removed + n;
    DELETE FROM outbox.parked p WHERE (p.relay, p.id) IN (
        SELECT o.relay, o.id FROM outbox.parked o WHERE o.released_at < clock_timestamp() - keep LIMIT chunk);
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN removed + n;
END
$$;

-- ----------------------------------------------------------------------------------------------------------- views

CREATE OR REPLACE VIEW outbox.cursors AS
WITH RECURSIVE names AS (
    SELECT min(relay) AS relay FROM outbox.batches
    UNION ALL
    SELECT (SELECT min(b.relay) FROM outbox.batches b WHERE b.relay > names.relay) FROM names WHERE names.relay IS NOT NULL
)
SELECT newest.*
FROM names
CROSS JOIN LATERAL (SELECT * FROM outbox.batches b WHERE b.relay = names.relay ORDER BY b.seq DESC LIMIT 1) AS newest
WHERE names.relay IS NOT NULL;

-- Who leads: the holder of the lock, and the process that saved last.
CREATE VIEW outbox.leaders AS
SELECT c.relay, l.pid AS lock_session_pid, c.leader, c.leader_token,
       (SELECT min(b.saved_at) FROM outbox.batches b
        WHERE b.relay = c.relay AND b.leader_token = c.leader_token) AS leading_since
FROM outbox.cursors c
LEFT JOIN pg_locks l ON l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND l.classid::bigint = (outbox.leader_lock(c.relay) >> 32) & 4294967295
    AND l.objid::bigint = outbox.leader_lock(c.relay) & 4294967295;

COMMENT ON VIEW outbox.leaders IS 'Per relay: the session that holds the leader lock (none: nobody leads), and the process that saved last.';

CREATE OR REPLACE VIEW outbox.status AS
SELECT c.relay, c.seq, c.leader_token, c.saved_at, clock_timestamp() - c.saved_at AS since_last_save,
       p.pending, p.oldest_pending_at, clock_timestamp() - p.oldest_pending_at AS oldest_pending_age,
       c.leader, l.lock_session_pid,
       (SELECT count(*) FROM outbox.parked k WHERE k.relay = c.relay AND k.released_at IS NULL AND k.reason IS NOT NULL) AS parked,
       (SELECT count(*) FROM outbox.parked k WHERE k.relay = c.relay AND k.released_at IS NULL AND k.reason IS NULL) AS held,
       (SELECT h.reason FROM outbox.halts h WHERE h.relay = c.relay AND h.cleared_at IS NULL) AS halted
FROM outbox.cursors c
JOIN outbox.leaders l ON l.relay = c.relay
CROSS JOIN LATERAL (
    SELECT count(*) AS pending, min(created_at) AS oldest_pending_at FROM outbox.pending p WHERE p.relay = c.relay
) AS p;

-- What does not move by itself, and why.
CREATE VIEW outbox.stuck AS
SELECT p.relay, CASE WHEN p.reason IS NULL THEN 'held' ELSE 'parked' END AS what,
       coalesce(p.reason, format('behind event %s of the same key', (
           SELECT b.event_id FROM outbox.parked b
           WHERE b.relay = p.relay AND b.aggregate_id = p.aggregate_id AND b.released_at IS NULL AND b.reason IS NOT NULL
           ORDER BY b.id LIMIT 1))) AS why,
       p.id, p.event_id, p.event_type, p.aggregate_id, p.attempts, p.parked_at AS since
FROM outbox.parked p
WHERE p.released_at IS NULL
UNION ALL
SELECT h.relay, 'relay', h.reason, NULL, NULL, NULL, NULL, NULL, h.halted_at
FROM outbox.halts h
WHERE h.cleared_at IS NULL;

COMMENT ON VIEW outbox.stuck IS 'Events that are parked or held, and relays that refuse to run, with the reason.';

-- When was an event published, by whom, and where: ask for an event_id or an id.
CREATE VIEW outbox.published AS
SELECT b.relay, e.id, e.event_id, e.event_type, e.aggregate_id, e.created_at,
       coalesce(k.released_at, b.saved_at) AS published_at, b.leader, b.seq, b.ranges
FROM outbox.events e
CROSS JOIN LATERAL (
    SELECT * FROM outbox.batches b
    WHERE b.first_id IS NOT NULL AND int8range(b.first_id, b.last_id, '[]') @> e.id
      AND outbox.is_past(b.window_from, b.window_to, b.after_id, e.xid, e.id)
    ORDER BY b.seq LIMIT 1
) AS b
LEFT JOIN outbox.parked k ON k.relay = b.relay AND k.id = e.id
WHERE k.id IS NULL OR k.outcome = 'redriven';

COMMENT ON VIEW outbox.published IS 'Published events: when it was saved as published, by which leader, in which ranges of offsets.';

-- ------------------------------------------------------------------------------------------------------ privileges

REVOKE ALL ON ALL TABLES IN SCHEMA outbox FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA outbox FROM PUBLIC;

CREATE OR REPLACE FUNCTION outbox.grant_relay(grantee name) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA outbox TO %I', grantee);
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA outbox TO %I', grantee);
    EXECUTE format('GRANT INSERT ON outbox.batches, outbox.parked, outbox.halts, outbox.ghosts, outbox.verifications TO %I', grantee);
    EXECUTE format('GRANT UPDATE (reason, attempts, released_at, outcome, command_id) ON outbox.parked TO %I', grantee);
    EXECUTE format('GRANT UPDATE (started_at, after_id, published, finished_at, result) ON outbox.commands TO %I', grantee);
    EXECUTE format('GRANT EXECUTE ON FUNCTION outbox.is_past(pg_snapshot, pg_snapshot, bigint, xid8, bigint), outbox.leader_lock(text) TO %I', grantee);
    EXECUTE format('GRANT EXECUTE ON FUNCTION outbox.recycle(smallint, interval), outbox.trim(interval, integer) TO %I', grantee);
END
$$;

-- Reads everything.
CREATE OR REPLACE FUNCTION outbox.grant_reader(grantee name) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA outbox TO %I', grantee);
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA outbox TO %I', grantee);
    EXECUTE format('GRANT EXECUTE ON FUNCTION outbox.is_past(pg_snapshot, pg_snapshot, bigint, xid8, bigint), outbox.leader_lock(text) TO %I', grantee);
END
$$;

-- Reads everything, and may ask the leader for a redrive, a discard or a replay.
CREATE FUNCTION outbox.grant_operator(grantee name) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM outbox.grant_reader(grantee);
    EXECUTE format('GRANT EXECUTE ON FUNCTION outbox.request(text, text, jsonb, text, text) TO %I', grantee);
    EXECUTE format('GRANT INSERT ON outbox.verifications TO %I', grantee);
END
$$;

REVOKE ALL ON FUNCTION outbox.grant_writer(name), outbox.grant_relay(name), outbox.grant_reader(name), outbox.grant_operator(name) FROM PUBLIC;
