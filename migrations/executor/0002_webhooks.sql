-- What PSPs tell by themselves: kept as it came before it is answered, and worked off afterwards.

CREATE TABLE executor.webhooks (
    webhook_id       bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    psp              text        NOT NULL CHECK (psp IN ('STRIPE', 'ADYEN')),
    dedup_key        text        NOT NULL CHECK (length(dedup_key) BETWEEN 1 AND 255),
    event_type       text        NOT NULL CHECK (length(event_type) <= 100),
    payment_order_id uuid,
    body             bytea       NOT NULL,
    body_masked      boolean     NOT NULL,
    received_at      timestamptz NOT NULL,
    due_at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    tries            integer     NOT NULL DEFAULT 0 CHECK (tries >= 0),
    failures         integer     NOT NULL DEFAULT 0 CHECK (failures >= 0),
    processed_at     timestamptz,
    outcome          text        CHECK (outcome IN ('RECORDED', 'KNOWN', 'WOKE', 'IGNORED', 'UNRELATED', 'WRONG_MODE',
                                                    'UNREADABLE', 'UNKNOWN_ORDER', 'REFUSED')),
    UNIQUE (psp, dedup_key),
    CHECK ((processed_at IS NULL) = (outcome IS NULL))
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

-- What is to be worked off, and its age; what may be deleted; what is known about an order.
CREATE INDEX webhooks_due ON executor.webhooks (due_at) WHERE processed_at IS NULL;
CREATE INDEX webhooks_waiting ON executor.webhooks (received_at) WHERE processed_at IS NULL;
CREATE INDEX webhooks_processed ON executor.webhooks (processed_at) WHERE processed_at IS NOT NULL;
CREATE INDEX webhooks_order ON executor.webhooks (payment_order_id) WHERE payment_order_id IS NOT NULL;

COMMENT ON TABLE executor.webhooks IS 'Events that PSPs sent, verified, each once. Deleted some time after they were worked off.';
COMMENT ON COLUMN executor.webhooks.dedup_key IS 'Stripe: the event''s id. Adyen: pspReference, eventCode, success, originalReference.';
COMMENT ON COLUMN executor.webhooks.body IS 'Stripe: the bytes as they came. Adyen: the item as it came, alone in its envelope. With card numbers masked, see body_masked.';
COMMENT ON COLUMN executor.webhooks.due_at IS 'Not to be taken up before: its order is not known yet, or a call for it is under way.';
COMMENT ON COLUMN executor.webhooks.failures IS 'How often the database refused what followed from it.';
COMMENT ON COLUMN executor.webhooks.outcome IS 'RECORDED: a new result. KNOWN: nothing new. WOKE: the PSP is asked now. IGNORED: not a kind that matters here. UNRELATED: not about an order of ours. WRONG_MODE: live where test is expected, or the reverse. UNREADABLE: not an event. UNKNOWN_ORDER: its order did not turn up in time. REFUSED: given up after too many failures.';

-- Records that are set aside may hold card numbers, which are kept nowhere.
ALTER TABLE executor.quarantine ADD COLUMN masked boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN executor.quarantine.masked IS 'What looked like a card number was replaced by asterisks in key, value, headers or reason: these are not the original bytes.';

-- The executor itself. It deletes webhooks that were worked off and nothing else; results it can only add.
CREATE OR REPLACE FUNCTION executor.grant_service(grantee name) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA executor TO %I', grantee);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE ON executor.inbox, executor.psp_attempts TO %I', grantee);
    EXECUTE format('GRANT SELECT, INSERT ON executor.psp_results, executor.quarantine TO %I', grantee);
    EXECUTE format('GRANT SELECT, INSERT, DELETE ON executor.webhooks TO %I', grantee);
    EXECUTE format('GRANT UPDATE (due_at, tries, failures, processed_at, outcome) ON executor.webhooks TO %I', grantee);
END
$$;

REVOKE ALL ON executor.webhooks FROM PUBLIC;
