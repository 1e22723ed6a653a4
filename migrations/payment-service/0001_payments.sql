-- Payments, their orders, and everything that ever changed their states.
--
-- A payment has payment orders; one payment order is at most one charge. States change in two ways only: a payment order is
-- created together with its payment, and a PSP result is processed. Either writes a row of payment_order_transitions. Where a person
-- changes a state by hand, the database writes that row.

CREATE SCHEMA IF NOT EXISTS payments;

-- -------------------------------------------------------------------------------------------------------- payments

CREATE TABLE payments.payments (
    payment_id         uuid        PRIMARY KEY,
    -- Who asked for it: the name that belongs to the API token. Nobody else may see it.
    caller             text        NOT NULL CHECK (length(caller) BETWEEN 1 AND 64),
    amount_minor       bigint      NOT NULL CHECK (amount_minor > 0),
    currency           text        NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    merchant_reference text        NOT NULL CHECK (length(merchant_reference) BETWEEN 1 AND 255),
    status             text        NOT NULL
        CHECK (status IN ('CREATED', 'PENDING', 'UNKNOWN', 'SUCCESSFUL', 'FAILED', 'NEEDS_REVIEW')),
    review_reason      text
        CHECK (review_reason IN ('LATE_SUCCESS', 'SECOND_SUCCESS', 'FAILURE_AFTER_SUCCESS', 'AMOUNT_MISMATCH',
                                 'RESOLUTION_EXHAUSTED', 'EXPIRED', 'IDEMPOTENCY_MISMATCH', 'DOUBLE_CHARGE')),
    trace_id           text        NOT NULL CHECK (trace_id ~ '^[0-9a-f]{32}$'),
    created_at         timestamptz NOT NULL,
    updated_at         timestamptz NOT NULL,
    CHECK ((status = 'NEEDS_REVIEW') = (review_reason IS NOT NULL))
);

CREATE INDEX payments_in_review ON payments.payments (updated_at) WHERE status = 'NEEDS_REVIEW';

COMMENT ON COLUMN payments.payments.status IS 'Derived from the payment''s orders, in the transaction that changes one of them.';

CREATE TABLE payments.payment_orders (
    payment_order_id uuid        PRIMARY KEY,
    payment_id       uuid        NOT NULL REFERENCES payments.payments,
    try              integer     NOT NULL CHECK (try > 0),
    psp              text        NOT NULL CHECK (psp IN ('STRIPE', 'ADYEN')),
    payment_method   text        NOT NULL CHECK (length(payment_method) BETWEEN 1 AND 255),
    state            text        NOT NULL
        CHECK (state IN ('CREATED', 'PENDING', 'UNKNOWN', 'SUCCESSFUL', 'FAILED', 'NEEDS_REVIEW')),
    psp_reference    text        CHECK (length(psp_reference) BETWEEN 1 AND 255),
    error_code       text        CHECK (length(error_code) BETWEEN 1 AND 255),
    error_message    text        CHECK (length(error_message) <= 500),
    review_reason    text
        CHECK (review_reason IN ('LATE_SUCCESS', 'SECOND_SUCCESS', 'FAILURE_AFTER_SUCCESS', 'AMOUNT_MISMATCH',
                                 'RESOLUTION_EXHAUSTED', 'EXPIRED', 'IDEMPOTENCY_MISMATCH')),
    traceparent      text        NOT NULL,
    expires_at       timestamptz NOT NULL,
    created_at       timestamptz NOT NULL,
    updated_at       timestamptz NOT NULL,
    settled_at       timestamptz,
    UNIQUE (payment_id, try),
    CHECK ((state = 'NEEDS_REVIEW') = (review_reason IS NOT NULL)),
    CHECK (state NOT IN ('SUCCESSFUL', 'FAILED') OR settled_at IS NOT NULL)
);

COMMENT ON COLUMN payments.payment_orders.payment_order_id IS 'UUIDv5 of caller, Idempotency-Key and try: asking again after a lost database meets the same PSP idempotency key.';
COMMENT ON COLUMN payments.payment_orders.settled_at IS 'When the outcome became known for the first time.';

-- The second guard of the state machine: what the service's own decision should never ask for is refused here too. Several
-- events of one batch are folded into one update, so that an open order may go anywhere but back to CREATED.
CREATE FUNCTION payments.refuse_illegal_transition() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NEW.state <> OLD.state AND NOT (
        (OLD.state IN ('CREATED', 'PENDING', 'UNKNOWN') AND NEW.state <> 'CREATED')
        OR (OLD.state IN ('SUCCESSFUL', 'FAILED') AND NEW.state = 'NEEDS_REVIEW')
    ) THEN
        RAISE EXCEPTION 'payment order % may not go from % to %', OLD.payment_order_id, OLD.state, NEW.state;
    END IF;
    -- Which charge it was does not change once it is known, except that a late success names the charge to look at.
    IF OLD.state = 'SUCCESSFUL' AND NEW.psp_reference IS DISTINCT FROM OLD.psp_reference AND OLD.psp_reference IS NOT NULL THEN
        RAISE EXCEPTION 'payment order % may not change its PSP reference', OLD.payment_order_id;
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER refuse_illegal_transition BEFORE UPDATE ON payments.payment_orders
    FOR EACH ROW EXECUTE FUNCTION payments.refuse_illegal_transition();

-- A payment's status is derived, and follows its orders anywhere; but success it leaves for review alone, and review it does not leave.
CREATE FUNCTION payments.refuse_illegal_status() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'payment % may not go from % to %', OLD.payment_id, OLD.status, NEW.status;
END
$$;

CREATE TRIGGER refuse_illegal_status BEFORE UPDATE ON payments.payments
    FOR EACH ROW
    WHEN (NEW.status <> OLD.status
          AND (OLD.status = 'NEEDS_REVIEW' OR OLD.status = 'SUCCESSFUL' AND NEW.status <> 'NEEDS_REVIEW'))
    EXECUTE FUNCTION payments.refuse_illegal_status();

-- -------------------------------------------------------------------------------------------------------- commands

CREATE FUNCTION payments.refuse_change() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP;
END
$$;

-- What operators have asked for: the audit of everything that is not a PSP's doing.
CREATE TABLE payments.commands (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind         text        NOT NULL CHECK (kind IN ('redrive', 'discard')),
    selection    jsonb       NOT NULL,
    -- Who says to have asked, and why.
    operator     text        NOT NULL CHECK (operator ~ '[^[:space:]]' AND length(operator) <= 100),
    note         text        NOT NULL CHECK (note ~ '[^[:space:]]' AND length(note) <= 1000),
    -- Whose session it was.
    requested_by text        NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON payments.commands
    FOR EACH ROW EXECUTE FUNCTION payments.refuse_change();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON payments.commands
    FOR EACH STATEMENT EXECUTE FUNCTION payments.refuse_change();

COMMENT ON TABLE payments.commands IS 'Who asked for what, and why. Append-only; written through payments.request() alone.';

-- ----------------------------------------------------------------------------------------------------------- audit

CREATE TABLE payments.payment_order_transitions (
    transition_id    bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payment_order_id uuid        NOT NULL REFERENCES payments.payment_orders,
    -- NULL for the creation. Not unique on purpose: processed_events is the guard, and this table must be able to show that it failed.
    event_id         uuid,
    from_state       text
        CHECK (from_state IN ('CREATED', 'PENDING', 'UNKNOWN', 'SUCCESSFUL', 'FAILED', 'NEEDS_REVIEW')),
    to_state         text        NOT NULL
        CHECK (to_state IN ('CREATED', 'PENDING', 'UNKNOWN', 'SUCCESSFUL', 'FAILED', 'NEEDS_REVIEW')),
    decision         text        NOT NULL CHECK (decision IN ('APPLIED', 'DUPLICATE', 'STALE', 'CONFLICT', 'BY_HAND')),
    psp_status       text        CHECK (psp_status IN ('SUCCESSFUL', 'FAILED', 'PENDING', 'UNKNOWN')),
    psp_reference    text        CHECK (length(psp_reference) <= 255),
    error_code       text        CHECK (length(error_code) <= 255),
    event_time       timestamptz,
    topic            text,
    partition        integer,
    record_offset    bigint,
    trace_id         text        NOT NULL,
    -- Who was behind it, where it was a person: who had the event redriven, or who changed the order by hand, and why.
    operator         text,
    note             text,
    command_id       bigint      REFERENCES payments.commands,
    -- What a hand has set it to; of an event it follows from the decision.
    review_reason    text,
    -- The wall clock in the last statement of the transaction: decided_at - event_time is how late the result became a state,
    -- all but the commit itself.
    decided_at       timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX payment_order_transitions_order ON payments.payment_order_transitions (payment_order_id, transition_id);

COMMENT ON TABLE payments.payment_order_transitions IS 'One row per event that was decided upon, whatever the decision, one per creation, and one per change by hand. Append-only.';

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON payments.payment_order_transitions
    FOR EACH ROW EXECUTE FUNCTION payments.refuse_change();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON payments.payment_order_transitions
    FOR EACH STATEMENT EXECUTE FUNCTION payments.refuse_change();

-- Whoever changes an order and is not the service, which says so in the same statement and writes its own rows, is a hand. A hand may
-- say whose it is: SET payments.operator and payments.note.
CREATE FUNCTION payments.write_down_hand() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO payments.payment_order_transitions
        (payment_order_id, from_state, to_state, decision, psp_reference, error_code, review_reason, trace_id, operator, note)
    VALUES (NEW.payment_order_id, OLD.state, NEW.state, 'BY_HAND', NEW.psp_reference, NEW.error_code, NEW.review_reason,
            split_part(NEW.traceparent, '-', 2),
            coalesce(nullif(current_setting('payments.operator', true), ''), session_user),
            nullif(current_setting('payments.note', true), ''));
    RETURN NULL;
END
$$;

CREATE TRIGGER write_down_hand AFTER UPDATE ON payments.payment_orders
    FOR EACH ROW
    WHEN ((OLD.state, OLD.psp_reference, OLD.error_code, OLD.review_reason)
              IS DISTINCT FROM (NEW.state, NEW.psp_reference, NEW.error_code, NEW.review_reason)
          AND current_setting('payments.writer', true) IS DISTINCT FROM 'payment-service')
    EXECUTE FUNCTION payments.write_down_hand();

-- -------------------------------------------------------------------------------------------------- events taken once

-- A row is inserted in the transaction of the event's effect and lives as long as its payment order.
CREATE TABLE payments.processed_events (
    event_id         uuid        PRIMARY KEY,
    payment_order_id uuid        NOT NULL,
    processed_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- ------------------------------------------------------------------------------------------------------ quarantine

-- Records that could not become a transition, with their original bytes. This table is the authority; the topic beside it is a copy.
CREATE TABLE payments.quarantine (
    id                  bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic               text        NOT NULL,
    partition           integer     NOT NULL,
    record_offset       bigint      NOT NULL,
    -- SHA-256 of key, value, headers and time. Part of the key: in a topic that was made anew, offsets begin again.
    digest              bytea       NOT NULL CHECK (length(digest) = 32),
    reason_code         text        NOT NULL CHECK (reason_code IN ('UNDECODABLE', 'ORPHAN', 'REFUSED')),
    reason              text        NOT NULL,
    event_id            uuid,
    payment_order_id    uuid,
    record_key          bytea,
    record_value        bytea,
    headers             jsonb       NOT NULL,
    -- As the record has it. A number, because anybody may write any: not every one is a point in time.
    record_timestamp_ms bigint,
    attempts            integer     NOT NULL DEFAULT 1,
    received_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    settled_at          timestamptz,
    outcome             text        CHECK (outcome IN ('APPLIED', 'KNOWN', 'DISCARDED')),
    -- The copy on the topic: who is making it, for so long, and when it was there.
    copy_leased_until   timestamptz,
    copied_at           timestamptz,
    UNIQUE (topic, partition, record_offset, digest),
    CHECK ((settled_at IS NULL) = (outcome IS NULL))
);

CREATE INDEX quarantine_unsettled ON payments.quarantine (reason_code, id) WHERE settled_at IS NULL;
CREATE INDEX quarantine_uncopied ON payments.quarantine (id) WHERE copied_at IS NULL;

COMMENT ON COLUMN payments.quarantine.reason_code IS 'UNDECODABLE: not an event. ORPHAN: its payment order does not exist (yet). REFUSED: the event contradicts itself or the database refused it.';
COMMENT ON COLUMN payments.quarantine.headers IS 'Array of {"name", "value"}, or {"name", "hex"} where the value is not text.';
COMMENT ON COLUMN payments.quarantine.outcome IS 'APPLIED: redriven, or its order appeared. KNOWN: its event had been applied already. DISCARDED: an operator has given it up.';

-- What a command concerns, chosen when it was given, and what became of each.
CREATE TABLE payments.command_items (
    command_id    bigint      NOT NULL REFERENCES payments.commands,
    quarantine_id bigint      NOT NULL REFERENCES payments.quarantine,
    outcome       text        CHECK (outcome IN ('APPLIED', 'KNOWN', 'REFUSED', 'DISCARDED')),
    reason        text,
    finished_at   timestamptz,
    PRIMARY KEY (command_id, quarantine_id),
    CHECK ((outcome IS NULL) = (finished_at IS NULL))
);

-- One command at a time concerns a record.
CREATE UNIQUE INDEX command_items_open ON payments.command_items (quarantine_id) WHERE finished_at IS NULL;

CREATE TRIGGER append_only BEFORE UPDATE ON payments.command_items
    FOR EACH ROW WHEN (OLD.finished_at IS NOT NULL) EXECUTE FUNCTION payments.refuse_change();
CREATE TRIGGER never_deleted BEFORE DELETE ON payments.command_items
    FOR EACH ROW EXECUTE FUNCTION payments.refuse_change();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON payments.command_items
    FOR EACH STATEMENT EXECUTE FUNCTION payments.refuse_change();

COMMENT ON TABLE payments.command_items IS 'The records of a command. An outcome, once written, stays. REFUSED: it is in quarantine still, for this reason.';

CREATE VIEW payments.command_results WITH (security_invoker = true) AS
SELECT c.id, c.kind, c.operator, c.note, c.requested_by, c.requested_at,
       CASE WHEN count(i.*) FILTER (WHERE i.outcome IS NULL) = 0 THEN coalesce(max(i.finished_at), c.requested_at) END AS finished_at, c.selection,
       count(i.*) AS selected,
       count(i.*) FILTER (WHERE i.outcome IS NULL) AS open,
       count(i.*) FILTER (WHERE i.outcome = 'APPLIED') AS applied,
       count(i.*) FILTER (WHERE i.outcome = 'KNOWN') AS known,
       count(i.*) FILTER (WHERE i.outcome = 'REFUSED') AS refused,
       count(i.*) FILTER (WHERE i.outcome = 'DISCARDED') AS discarded
FROM payments.commands c LEFT JOIN payments.command_items i ON i.command_id = c.id
GROUP BY c.id;

-- The unsettled records that a selection means. Each key narrows it; without any it is everything.
CREATE FUNCTION payments.selected(selection jsonb) RETURNS SETOF payments.quarantine
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT q.* FROM payments.quarantine q
    WHERE q.settled_at IS NULL
      AND (selection -> 'ids' IS NULL
           OR q.id IN (SELECT value::bigint FROM jsonb_array_elements_text(selection -> 'ids')))
      AND (selection -> 'reason' IS NULL OR q.reason_code = selection ->> 'reason')
      AND (selection -> 'event_id' IS NULL OR q.event_id = (selection ->> 'event_id')::uuid)
      AND (selection -> 'payment_order_id' IS NULL OR q.payment_order_id = (selection ->> 'payment_order_id')::uuid)
      AND (selection -> 'topic' IS NULL OR q.topic = selection ->> 'topic')
      AND (selection -> 'partition' IS NULL OR q.partition = (selection ->> 'partition')::integer)
      AND (selection -> 'from_offset' IS NULL OR q.record_offset >= (selection ->> 'from_offset')::bigint)
      AND (selection -> 'to_offset' IS NULL OR q.record_offset <= (selection ->> 'to_offset')::bigint)
$$;

-- The operators' only way to change anything. A discard is done at once; a redrive is carried out by the service, record by record.
CREATE FUNCTION payments.request(kind text, selection jsonb, operator text, note text) RETURNS bigint
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    command bigint;
BEGIN
    INSERT INTO payments.commands (kind, selection, operator, note, requested_by)
    VALUES (kind, selection, operator, note, session_user) RETURNING id INTO command;
    IF kind = 'redrive' THEN
        -- Locked, so that none is settled between being chosen and being asked for. What another command is at work on is left to that one.
        WITH chosen AS (
            SELECT q.id FROM payments.quarantine q
            WHERE q.id IN (SELECT s.id FROM payments.selected(selection) s) AND q.settled_at IS NULL ORDER BY q.id FOR NO KEY UPDATE
        )
        INSERT INTO payments.command_items (command_id, quarantine_id) SELECT command, id FROM chosen ON CONFLICT DO NOTHING;
    ELSIF kind = 'discard' THEN
        WITH discarded AS (
            UPDATE payments.quarantine q SET settled_at = clock_timestamp(), outcome = 'DISCARDED'
            WHERE q.id IN (SELECT s.id FROM payments.selected(selection) s) AND q.settled_at IS NULL RETURNING q.id
        ), ended AS (
            UPDATE payments.command_items i SET outcome = 'DISCARDED', finished_at = clock_timestamp()
            FROM discarded d WHERE i.quarantine_id = d.id AND i.finished_at IS NULL
        )
        INSERT INTO payments.command_items (command_id, quarantine_id, outcome, finished_at)
        SELECT command, id, 'DISCARDED', clock_timestamp() FROM discarded;
    END IF;
    RETURN command;
END
$$;

-- ----------------------------------------------------------------------------------------------------- idempotency

-- The answer to the first request with a key, given again to every later one.
CREATE TABLE payments.idempotency_keys (
    caller          text        NOT NULL,
    idempotency_key text        NOT NULL CHECK (length(idempotency_key) BETWEEN 1 AND 255),
    -- SHA-256 of the request as it was understood.
    fingerprint     bytea       NOT NULL CHECK (length(fingerprint) = 32),
    payment_id      uuid        NOT NULL,
    status_code     integer     NOT NULL,
    response        jsonb       NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (caller, idempotency_key)
);

-- ------------------------------------------------------------------------------------------------------ privileges

REVOKE ALL ON SCHEMA payments FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA payments FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA payments FROM PUBLIC;

-- The service: may add, and may change what a result changes. It can neither rewrite its audit nor forget an event it has taken.
CREATE FUNCTION payments.grant_service(grantee name) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA payments TO %I', grantee);
    EXECUTE format('GRANT SELECT, INSERT ON payments.payments, payments.payment_orders, payments.payment_order_transitions, '
                   'payments.processed_events, payments.quarantine, payments.idempotency_keys TO %I', grantee);
    EXECUTE format('GRANT UPDATE (status, review_reason, updated_at) ON payments.payments TO %I', grantee);
    EXECUTE format('GRANT UPDATE (state, psp_reference, error_code, error_message, review_reason, updated_at, settled_at) '
                   'ON payments.payment_orders TO %I', grantee);
    EXECUTE format('GRANT SELECT ON payments.commands, payments.command_items TO %I', grantee);
    EXECUTE format('GRANT UPDATE (reason_code, reason, attempts, settled_at, outcome, copy_leased_until, copied_at) '
                   'ON payments.quarantine TO %I', grantee);
    EXECUTE format('GRANT UPDATE (outcome, reason, finished_at) ON payments.command_items TO %I', grantee);
END
$$;

-- Reads everything and changes nothing.
CREATE FUNCTION payments.grant_reader(grantee name) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA payments TO %I', grantee);
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA payments TO %I', grantee);
    EXECUTE format('GRANT EXECUTE ON FUNCTION payments.selected(jsonb) TO %I', grantee);
END
$$;

-- An operator: reads everything, and may ask for what payments.request() offers.
CREATE FUNCTION payments.grant_operator(grantee name) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM payments.grant_reader(grantee);
    EXECUTE format('GRANT EXECUTE ON FUNCTION payments.request(text, jsonb, text, text) TO %I', grantee);
END
$$;

REVOKE ALL ON FUNCTION payments.grant_service(name), payments.grant_reader(name), payments.grant_operator(name) FROM PUBLIC;
