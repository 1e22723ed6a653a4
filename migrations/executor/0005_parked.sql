-- An order whose claim the database refuses is set aside, so that it holds up no other; it is tried again, less and less often.

CREATE TABLE executor.parked (
    -- No foreign key, and no column of the inbox: it may be that row which cannot be written.
    payment_order_id uuid        PRIMARY KEY,
    sqlstate         text        NOT NULL,
    reason           text        NOT NULL,
    refusals         integer     NOT NULL DEFAULT 1 CHECK (refusals > 0),
    parked_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    again_at         timestamptz NOT NULL
);

COMMENT ON TABLE executor.parked IS 'Orders that the database refuses to have claimed, each until a claim of it succeeds: nobody calls a PSP for them meanwhile.';
COMMENT ON COLUMN executor.parked.again_at IS 'Not to be claimed before. Set it to now() once the cause is gone.';

REVOKE ALL ON executor.parked FROM PUBLIC;

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
    EXECUTE format('GRANT UPDATE (due_at, tries, failures, processed_at, outcome) ON executor.webhooks TO %I', grantee);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON executor.parked TO %I', grantee);
END
$$;
