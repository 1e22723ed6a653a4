-- What PaymentOrderExecutor knows: the requests it took in, each call to a PSP, and each result that a PSP gave.
--
-- A request is taken in once (primary key), carried out under a claim with a lease, and settled by a result. A call is
-- written down before it is made, so that a crash leaves a trace of what may have happened at the PSP.

CREATE SCHEMA IF NOT EXISTS executor;

-- ----------------------------------------------------------------------------------------------------------- inbox

-- One row per payment order. It is the row that every writer of results locks: the order of an order's events is the
-- order in which that lock was held.
CREATE TABLE executor.inbox (
    payment_order_id   uuid        PRIMARY KEY,
    request_event_id   uuid,
    psp                text        NOT NULL,
    amount_minor       bigint      NOT NULL CHECK (amount_minor > 0),
    currency           text        NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    payment_method     text        NOT NULL,
    merchant_reference text        NOT NULL,
    expires_at         timestamptz NOT NULL,
    traceparent        text        NOT NULL,
    tracestate         text,
    state              text        NOT NULL DEFAULT 'QUEUED'
                       CHECK (state IN ('QUEUED', 'IN_FLIGHT', 'RESOLVING', 'SETTLED', 'REVIEW')),
    -- The last operation that changes something at the PSP and that was begun.
    step               text        CHECK (step IN ('CREATE', 'CONFIRM', 'CANCEL')),
    first_attempt_at   timestamptz,
    psp_reference      text,
    psp_status         text        CHECK (psp_status IN ('SUCCESSFUL', 'FAILED', 'PENDING', 'UNKNOWN')),
    claimed_by         uuid,
    lease_until        timestamptz,
    due_at             timestamptz NOT NULL DEFAULT clock_timestamp(),
    rung               smallint    NOT NULL DEFAULT 0 CHECK (rung >= 0),
    failures           smallint    NOT NULL DEFAULT 0 CHECK (failures >= 0),
    received_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    settled_at         timestamptz,
    CHECK ((state = 'IN_FLIGHT') = (claimed_by IS NOT NULL AND lease_until IS NOT NULL)),
    CHECK ((step IS NULL) = (first_attempt_at IS NULL)),
    CHECK (state NOT IN ('SETTLED', 'REVIEW') OR (psp_status IS NOT NULL AND settled_at IS NOT NULL))
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

-- The three questions that are asked all the time. Settled orders, nearly all rows, are in none of these indexes.
CREATE INDEX inbox_queued ON executor.inbox (due_at) WHERE state = 'QUEUED';
CREATE INDEX inbox_in_flight ON executor.inbox (lease_until) WHERE state = 'IN_FLIGHT';
CREATE INDEX inbox_resolving ON executor.inbox (due_at) WHERE state = 'RESOLVING';
-- For operators, and for the gauge that tells them.
CREATE INDEX inbox_review ON executor.inbox (settled_at) WHERE state = 'REVIEW';

COMMENT ON TABLE executor.inbox IS 'Payment orders to carry out, and how far each has come.';
COMMENT ON COLUMN executor.inbox.state IS 'QUEUED: to be carried out. IN_FLIGHT: claimed. RESOLVING: the PSP is to be asked. SETTLED: final. REVIEW: a person must look.';
COMMENT ON COLUMN executor.inbox.claimed_by IS 'Drawn per claim. Only its holder may call the PSP, until lease_until.';
COMMENT ON COLUMN executor.inbox.due_at IS 'QUEUED, RESOLVING: not to be taken up before.';
COMMENT ON COLUMN executor.inbox.rung IS 'How many steps of the resolver''s ladder have been used.';
COMMENT ON COLUMN executor.inbox.failures IS 'Calls in a row that were not executed (rate limit, no connection): they are made again after a growing pause.';

-- -------------------------------------------------------------------------------------------------------- attempts

-- One row per call to a PSP, written before the call. STARTED past its deadline: the process died, or its database was
-- away; what the PSP did is asked, never assumed.
CREATE TABLE executor.psp_attempts (
    attempt_id       uuid        PRIMARY KEY,
    -- No foreign key: the row is written in the statement that claims its order.
    payment_order_id uuid        NOT NULL,
    operation        text        NOT NULL CHECK (operation IN ('CREATE', 'CONFIRM', 'GET', 'CANCEL')),
    try              integer     NOT NULL CHECK (try > 0),
    idempotency_key  text        CHECK ((idempotency_key IS NULL) = (operation = 'GET')),
    request_hash     text        NOT NULL,
    status           text        NOT NULL DEFAULT 'STARTED' CHECK (status IN ('STARTED', 'FINISHED')),
    started_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    deadline_at      timestamptz NOT NULL,
    finished_at      timestamptz,
    verdict          text,
    http_status      smallint,
    psp_reference    text,
    psp_request_id   text,
    error_code       text,
    error_message    text,
    CHECK ((status = 'FINISHED') = (finished_at IS NOT NULL AND verdict IS NOT NULL))
) WITH (fillfactor = 70);

CREATE INDEX psp_attempts_order ON executor.psp_attempts (payment_order_id, operation);
CREATE INDEX psp_attempts_started ON executor.psp_attempts (deadline_at) WHERE status = 'STARTED';

COMMENT ON TABLE executor.psp_attempts IS 'Calls to PSPs, each written down before it was made.';
COMMENT ON COLUMN executor.psp_attempts.try IS 'Counts the calls of one operation for one order; all of them carry the same idempotency key.';
COMMENT ON COLUMN executor.psp_attempts.request_hash IS 'SHA-256 of the request, to prove that a later try sent the same.';
COMMENT ON COLUMN executor.psp_attempts.verdict IS 'What the answer meant; ABANDONED: nobody was there to receive it.';

-- --------------------------------------------------------------------------------------------------------- results

-- What PSPs said. What agrees is one row, and so one event; a second success under another reference is another row.
CREATE TABLE executor.psp_results (
    result_id        uuid        PRIMARY KEY,
    payment_order_id uuid        NOT NULL REFERENCES executor.inbox,
    psp_status       text        NOT NULL CHECK (psp_status IN ('SUCCESSFUL', 'FAILED', 'PENDING', 'UNKNOWN')),
    psp_reference    text,
    error_code       text,
    error_message    text        CHECK (length(error_message) <= 500),
    source           text        NOT NULL CHECK (source IN ('REPLY', 'WEBHOOK', 'RESOLVER', 'OPERATOR')),
    event_id         uuid        NOT NULL UNIQUE,
    event_time       timestamptz NOT NULL,
    recorded_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE NULLS NOT DISTINCT (payment_order_id, psp_status, psp_reference, error_code)
);

COMMENT ON TABLE executor.psp_results IS 'What PSPs said about payment orders; each row was published as one event. Append-only.';
COMMENT ON COLUMN executor.psp_results.event_id IS 'The event''s id in the outbox and, as ce_id, on the topic.';
COMMENT ON COLUMN executor.psp_results.event_time IS 'When the answer was obtained from the PSP.';

CREATE FUNCTION executor.refuse_change() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION '%.% is append-only', TG_TABLE_SCHEMA, TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER psp_results_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON executor.psp_results
FOR EACH STATEMENT EXECUTE FUNCTION executor.refuse_change();

-- ------------------------------------------------------------------------------------------------------ quarantine

-- Records of the topic that are not requests that can be carried out, as they came.
CREATE TABLE executor.quarantine (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic         text        NOT NULL,
    partition     integer     NOT NULL,
    record_offset bigint      NOT NULL,
    reason_code   text        NOT NULL,
    reason        text        NOT NULL,
    record_key    bytea,
    record_value  bytea,
    headers       jsonb       NOT NULL,
    received_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (topic, partition, record_offset)
);

COMMENT ON TABLE executor.quarantine IS 'Records that could not be taken in, with the reason and their original bytes.';
COMMENT ON COLUMN executor.quarantine.headers IS 'A list of {"name", "text"} or, if not text, {"name", "hex"}, in their order.';

-- ------------------------------------------------------------------------------------------------------ privileges

REVOKE ALL ON SCHEMA executor FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA executor FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA executor FROM PUBLIC;

-- The executor itself. It deletes nothing; results it can only add.
CREATE FUNCTION executor.grant_service(grantee name) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA executor TO %I', grantee);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE ON executor.inbox, executor.psp_attempts TO %I', grantee);
    EXECUTE format('GRANT SELECT, INSERT ON executor.psp_results, executor.quarantine TO %I', grantee);
END
$$;

-- An operator: may read everything.
CREATE FUNCTION executor.grant_reader(grantee name) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA executor TO %I', grantee);
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA executor TO %I', grantee);
END
$$;

REVOKE ALL ON FUNCTION executor.grant_service(name), executor.grant_reader(name) FROM PUBLIC;
