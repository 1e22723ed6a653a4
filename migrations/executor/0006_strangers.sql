-- Webhooks of orders that are not known here, those of another system on the same account for instance, wait apart from ours.

ALTER TABLE executor.webhooks ADD COLUMN stranger boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN executor.webhooks.stranger IS 'Its order was not known when it was looked for last: it waits apart, and is looked at after all others.';

DROP INDEX executor.webhooks_due;
DROP INDEX executor.webhooks_waiting;
CREATE INDEX webhooks_due ON executor.webhooks (due_at) WHERE processed_at IS NULL AND NOT stranger;
CREATE INDEX webhooks_waiting ON executor.webhooks (received_at) WHERE processed_at IS NULL AND NOT stranger;
-- Those of strangers: what is due, the order that turns up, and the oldest, which are given up if there are too many.
CREATE INDEX webhooks_strangers_due ON executor.webhooks (due_at) WHERE processed_at IS NULL AND stranger;
CREATE INDEX webhooks_strangers_order ON executor.webhooks (payment_order_id) WHERE processed_at IS NULL AND stranger;
CREATE INDEX webhooks_strangers_oldest ON executor.webhooks (psp, webhook_id) WHERE processed_at IS NULL AND stranger;

-- The executor itself. It deletes webhooks that were worked off and orders that are set aside no more; results it can only add.
CREATE OR REPLACE FUNCTION executor.grant_service(grantee name) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA executor TO %I', grantee);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE ON executor.inbox, executor.psp_attempts TO %I', grantee);
    EXECUTE format('GRANT SELECT, INSERT ON executor.psp_results, executor.quarantine TO %I', grantee);
    EXECUTE format('GRANT SELECT, INSERT, DELETE ON executor.webhooks TO %I', grantee);
    EXECUTE format('GRANT UPDATE (due_at, tries, failures, processed_at, outcome, stranger) ON executor.webhooks TO %I', grantee);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON executor.parked TO %I', grantee);
END
$$;
