-- Payments, their orders, and everything that ever changed their states.
--
-- A payment has payment orders; one payment order is at most one charge. States change in two ways only: a payment order is
-- created together with its payment, and a PSP result is processed. Either writes a row of payment_order_transitions.

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
    decision         text        NOT NULL CHECK (decision IN ('APPLIED', 'DUPLICATE', 'STALE', 'CONFLICT')),
    psp_status       text        CHECK (psp_status IN ('SUCCESSFUL', 'FAILED', 'PENDING', 'UNKNOWN')),
    psp_reference    text        CHECK (length(psp_reference) <= 255),
    error_code       text        CHECK (length(error_code) <= 255),
    event_time       timestamptz,
    topic            text,
    partition        integer,
    record_offset    bigint,
    trace_id         text        NOT NULL,
    -- The wall clock in the last statement of the transaction: decided_at - event_time is how late the result became a state,
    -- all but the commit itself.
    decided_at       timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX payment_order_transitions_order ON payments.payment_order_transitions (payment_order_id, transition_id);

COMMENT ON TABLE payments.payment_order_transitions IS 'One row per event that was decided upon, whatever the decision, and one per creation. Append-only.';

CREATE FUNCTION payments.refuse_change() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP;
END
$$;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON payments.payment_order_transitions
    FOR EACH ROW EXECUTE FUNCTION payments.refuse_change();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON payments.payment_order_transitions
    FOR EACH STATEMENT EXECUTE FUNCTION payments.refuse_change();

-- -------------------------------------------------------------------------------------------------- events taken once

-- A row is inserted in the transaction of the event's effect and lives as long as its payment order.
CREATE TABLE payments.processed_events (
    event_id         uuid        PRIMARY KEY,
    payment_order_id uuid        NOT NULL,
    processed_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Records that could not become a transition, with their original bytes. This table is the authority; whatever is copied elsewhere is
-- a copy.
CREATE TABLE payments.quarantine (
    id               bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic            text        NOT NULL,
    partition        integer     NOT NULL,
    record_offset    bigint      NOT NULL,
    reason_code      text        NOT NULL CHECK (reason_code IN ('UNDECODABLE', 'ORPHAN', 'REFUSED')),
    reason           text        NOT NULL,
    event_id         uuid,
    payment_order_id uuid,
    record_key       bytea,
    record_value     bytea,
    headers          jsonb       NOT NULL,
    received_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    settled_at       timestamptz,
    UNIQUE (topic, partition, record_offset)
);

CREATE INDEX quarantine_unsettled ON payments.quarantine (reason_code, id) WHERE settled_at IS NULL;

COMMENT ON COLUMN payments.quarantine.reason_code IS 'UNDECODABLE: not an event. ORPHAN: its payment order does not exist (yet). REFUSED: the event contradicts itself or the database refused it.';
COMMENT ON COLUMN payments.quarantine.headers IS 'Array of {"name", "value"}, or {"name", "hex"} where the value is not text.';

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
    EXECUTE format('GRANT UPDATE (reason_code, reason, settled_at) ON payments.quarantine TO %I', grantee);
END
$$;

-- An operator: may read everything.
CREATE FUNCTION payments.grant_reader(grantee name) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA payments TO %I', grantee);
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA payments TO %I', grantee);
END
$$;

REVOKE ALL ON FUNCTION payments.grant_service(name), payments.grant_reader(name) FROM PUBLIC;
