-- The transactional outbox. It works on a plain PostgreSQL 15 or later: no extension, no superuser, no replication slot.
--
-- A service calls outbox.append() in the transaction of its business change; outbox-relay publishes what has committed.
-- Events are never updated and never deleted row by row: progress is kept beside them, in outbox.batches.

CREATE SCHEMA IF NOT EXISTS outbox;

-- ---------------------------------------------------------------------------------------------------------- events

-- A ring of eight partitions by day number: a day's rows are removed by truncating one leaf, so that retention needs
-- neither DDL at run time nor a DELETE per event. The slot is computed by outbox.append().
CREATE TABLE outbox.events (
    id           bigint GENERATED ALWAYS AS IDENTITY,
    slot         smallint    NOT NULL CHECK (slot BETWEEN 0 AND 7),
    -- The writing transaction. What a relay has to publish is what is visible in one snapshot and was not in the last.
    xid          xid8        NOT NULL DEFAULT pg_current_xact_id(),
    event_id     uuid        NOT NULL,
    event_type   text        NOT NULL,
    aggregate_id text        NOT NULL,
    -- As it was written: nothing searches it, and printing a jsonb for the relay costs as much as the rest of its row.
    payload      json        NOT NULL,
    traceparent  text,
    tracestate   text,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (id, slot),
    UNIQUE (event_id, slot)
) PARTITION BY LIST (slot);

CREATE TABLE outbox.events_0 PARTITION OF outbox.events FOR VALUES IN (0);
CREATE TABLE outbox.events_1 PARTITION OF outbox.events FOR VALUES IN (1);
CREATE TABLE outbox.events_2 PARTITION OF outbox.events FOR VALUES IN (2);
CREATE TABLE outbox.events_3 PARTITION OF outbox.events FOR VALUES IN (3);
CREATE TABLE outbox.events_4 PARTITION OF outbox.events FOR VALUES IN (4);
CREATE TABLE outbox.events_5 PARTITION OF outbox.events FOR VALUES IN (5);
CREATE TABLE outbox.events_6 PARTITION OF outbox.events FOR VALUES IN (6);
CREATE TABLE outbox.events_7 PARTITION OF outbox.events FOR VALUES IN (7);

-- What was written since a snapshot: a range of this index.
CREATE INDEX events_xid_id ON outbox.events (xid, id);

COMMENT ON TABLE outbox.events IS 'Events to publish. Append-only; written through outbox.append() alone.';
COMMENT ON COLUMN outbox.events.id IS 'Publication order. For one aggregate it is the commit order, as long as writers lock the aggregate before they append.';
COMMENT ON COLUMN outbox.events.event_id IS 'UUIDv7; travels as the CloudEvents header ce_id.';
COMMENT ON COLUMN outbox.events.event_type IS 'Looked up in the relay''s catalogue: names topic and Avro schema.';
COMMENT ON COLUMN outbox.events.aggregate_id IS 'The Kafka key.';
COMMENT ON COLUMN outbox.events.payload IS 'The event as JSON, with the field names of its Avro schema.';

-- The only way in. SECURITY DEFINER: services hold EXECUTE on this function and nothing on the table.
CREATE FUNCTION outbox.append(
    event_type   text,
    aggregate_id text,
    payload      json,
    traceparent  text DEFAULT NULL,
    tracestate   text DEFAULT NULL,
    event_id     uuid DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    now_at timestamptz := clock_timestamp();
    new_id bigint;
BEGIN
    -- With synchronous_commit = off a commit is visible, and would be published, before it is durable: a crash could
    -- then forget a result that the world has already seen.
    IF current_setting('synchronous_commit') = 'off' THEN
        RAISE EXCEPTION 'outbox.append refused: synchronous_commit is off'
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'An event could be published and then be forgotten by a crash.';
    END IF;
    IF coalesce(event_type, '') = '' OR length(event_type) > 255 THEN
        RAISE EXCEPTION 'outbox.append refused: event_type must have 1 to 255 characters' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF coalesce(aggregate_id, '') = '' OR length(aggregate_id) > 255 THEN
        RAISE EXCEPTION 'outbox.append refused: aggregate_id must have 1 to 255 characters' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF payload IS NULL OR json_typeof(payload) <> 'object' THEN
        RAISE EXCEPTION 'outbox.append refused: payload must be a JSON object' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF traceparent IS NOT NULL AND traceparent !~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$' THEN
        RAISE EXCEPTION 'outbox.append refused: traceparent is not a W3C traceparent' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF event_id IS NULL THEN
        event_id := outbox.uuid_v7(now_at);
    END IF;
    INSERT INTO outbox.events AS e (slot, event_id, event_type, aggregate_id, payload, traceparent, tracestate, created_at)
    VALUES ((floor(extract(epoch FROM now_at) / 86400)::bigint % 8)::smallint,
            event_id, event_type, aggregate_id, payload, traceparent, tracestate, now_at)
    RETURNING e.id INTO new_id;
    RETURN new_id;
END
$$;

-- UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then random bits. PostgreSQL has uuidv7() of its own only from 18 on.
CREATE FUNCTION outbox.uuid_v7(at timestamptz) RETURNS uuid
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT encode(
        set_bit(set_bit(
            overlay(uuid_send(gen_random_uuid())
                    PLACING substring(int8send(floor(extract(epoch FROM at) * 1000)::bigint) FROM 3)
                    FROM 1 FOR 6),
            52, 1), 53, 1),
        'hex')::uuid
$$;

-- -------------------------------------------------------------------------------------------------------- progress

-- A relay's progress: the newest row of a relay is its cursor. Rows are inserted, never updated: a single row that is
-- updated per batch bloats as soon as another session holds an old snapshot. The primary key is the fence: a leader that
-- was replaced while it slept finds its next number taken, and stops.
CREATE TABLE outbox.batches (
    relay             text        NOT NULL,
    seq               bigint      NOT NULL,
    leader_token      uuid        NOT NULL,
    -- The window that this batch belongs to: what is visible in window_to and was not in window_from.
    window_from       pg_snapshot NOT NULL,
    window_to         pg_snapshot NOT NULL,
    floor_id          bigint,
    after_id          bigint,
    count             integer     NOT NULL CHECK (count >= 0),
    first_id          bigint,
    last_id           bigint,
    partition_offsets jsonb       NOT NULL,
    system_identifier bigint      NOT NULL,
    database_oid      oid         NOT NULL,
    timeline          integer     NOT NULL,
    saved_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (relay, seq)
);

COMMENT ON TABLE outbox.batches IS 'Progress of the relays: the row with the highest seq of a relay is its cursor.';
COMMENT ON COLUMN outbox.batches.leader_token IS 'Drawn by a relay process each time it becomes the leader.';
COMMENT ON COLUMN outbox.batches.floor_id IS 'Lowest id among the rows written by transactions that began after window_from.';
COMMENT ON COLUMN outbox.batches.after_id IS 'Every row of the window up to this id is published; NULL: the whole window is.';
COMMENT ON COLUMN outbox.batches.partition_offsets IS 'Topic -> partition -> the offset after the last record acknowledged.';

-- The cursor of every relay: a skip scan, so that it stays quick beside millions of old batches.
CREATE VIEW outbox.cursors AS
WITH RECURSIVE names AS (
    SELECT min(relay) AS relay FROM outbox.batches
    UNION ALL
    SELECT (SELECT min(b.relay) FROM outbox.batches b WHERE b.relay > names.relay) FROM names WHERE names.relay IS NOT NULL
)
SELECT newest.*
FROM names
CROSS JOIN LATERAL (SELECT * FROM outbox.batches b WHERE b.relay = names.relay ORDER BY b.seq DESC LIMIT 1) AS newest
WHERE names.relay IS NOT NULL;

-- Committed events that a relay has not published yet (as far as it has saved). Before any relay ever ran, all of them.
CREATE VIEW outbox.pending AS
WITH cursors AS (
    SELECT relay, window_from, window_to, after_id FROM outbox.cursors
    UNION ALL
    SELECT NULL, '3:3:'::pg_snapshot, '3:3:'::pg_snapshot, NULL WHERE NOT EXISTS (SELECT FROM outbox.batches)
)
SELECT c.relay, e.id, e.event_id, e.event_type, e.aggregate_id, e.payload, e.traceparent, e.created_at,
       clock_timestamp() - e.created_at AS age
FROM cursors c
CROSS JOIN LATERAL (
    SELECT * FROM outbox.events n WHERE n.xid >= pg_snapshot_xmax(c.window_to)
    UNION ALL
    SELECT * FROM outbox.events l WHERE l.xid = ANY (ARRAY(SELECT pg_snapshot_xip(c.window_to)))
    UNION ALL
    SELECT * FROM outbox.events r
    WHERE c.after_id IS NOT NULL AND r.id > c.after_id
      AND NOT pg_visible_in_snapshot(r.xid, c.window_from) AND pg_visible_in_snapshot(r.xid, c.window_to)
) AS e;

COMMENT ON VIEW outbox.pending IS 'Committed events that are not published yet, per relay.';

CREATE VIEW outbox.status AS
SELECT c.relay, c.seq, c.leader_token, c.saved_at, clock_timestamp() - c.saved_at AS since_last_save,
       p.pending, p.oldest_pending_at, clock_timestamp() - p.oldest_pending_at AS oldest_pending_age
FROM outbox.cursors c
CROSS JOIN LATERAL (
    SELECT count(*) AS pending, min(created_at) AS oldest_pending_at FROM outbox.pending p WHERE p.relay = c.relay
) AS p;

COMMENT ON VIEW outbox.status IS 'One row per relay: its last save, and what is pending behind it.';

-- ----------------------------------------------------------------------------------------------------------- inbox

-- For consumers: an event id is taken once per consumer, in the transaction of its effect.
CREATE TABLE outbox.inbox (
    consumer    text        NOT NULL,
    event_id    uuid        NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, event_id)
);

-- True if this consumer has not taken the event before; the row is part of the caller's transaction. A second taker of
-- the same event waits for the first one's commit or rollback.
CREATE FUNCTION outbox.once(consumer text, event_id uuid) RETURNS boolean
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
    INSERT INTO outbox.inbox (consumer, event_id) VALUES (consumer, event_id) ON CONFLICT DO NOTHING;
    RETURN FOUND;
END
$$;

-- ------------------------------------------------------------------------------------------------------ privileges

REVOKE ALL ON SCHEMA outbox FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA outbox FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA outbox FROM PUBLIC;

-- A service: may append and take events once, and nothing else.
CREATE FUNCTION outbox.grant_writer(grantee name) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA outbox TO %I', grantee);
    EXECUTE format('GRANT EXECUTE ON FUNCTION outbox.append(text, text, json, text, text, uuid) TO %I', grantee);
    EXECUTE format('GRANT EXECUTE ON FUNCTION outbox.once(text, uuid) TO %I', grantee);
END
$$;

-- A relay: may read events and add progress.
CREATE FUNCTION outbox.grant_relay(grantee name) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA outbox TO %I', grantee);
    EXECUTE format('GRANT SELECT ON outbox.events, outbox.batches, outbox.cursors, outbox.pending, outbox.status TO %I', grantee);
    EXECUTE format('GRANT INSERT ON outbox.batches TO %I', grantee);
END
$$;

-- An operator: may read everything.
CREATE FUNCTION outbox.grant_reader(grantee name) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA outbox TO %I', grantee);
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA outbox TO %I', grantee);
END
$$;

REVOKE ALL ON FUNCTION outbox.grant_writer(name), outbox.grant_relay(name), outbox.grant_reader(name) FROM PUBLIC;
