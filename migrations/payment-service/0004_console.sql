-- The console: who is signed in, and what its pages look up.

-- Whoever knows the 256 random bits of a session is signed in: what is stored is their SHA-256. A session is worth no more than the token
-- that it was begun with: it is looked up together with that, and ends when the token is revoked.
CREATE TABLE payments.console_sessions (
    session_sha256 bytea       PRIMARY KEY CHECK (length(session_sha256) = 32),
    token_id       bigint      NOT NULL REFERENCES payments.api_tokens,
    begun_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at     timestamptz NOT NULL
);

CREATE INDEX console_sessions_expiry ON payments.console_sessions (expires_at);
CREATE INDEX console_sessions_token ON payments.console_sessions (token_id, expires_at);

COMMENT ON TABLE payments.console_sessions IS 'Who is signed in to the console. Rows go when they have expired, with the next sign-in.';

REVOKE ALL ON payments.console_sessions FROM PUBLIC;

-- Where all succeed, looking for one that has failed would read all of them.
CREATE INDEX payments_failed ON payments.payments (created_at, payment_id) WHERE status = 'FAILED';

-- Records in quarantine, in the order of the list, and those of one payment order.
CREATE INDEX quarantine_open ON payments.quarantine (id) WHERE settled_at IS NULL;
CREATE INDEX quarantine_order ON payments.quarantine (payment_order_id, id) WHERE payment_order_id IS NOT NULL;

-- The console: reads everything, may ask for what payments.request() offers, and keeps who is signed in. Unlike an operator it can neither
-- make nor revoke tokens: whoever takes it over cannot give himself a way back in.
CREATE FUNCTION payments.grant_console(grantee name) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM payments.grant_reader(grantee);
    EXECUTE format('GRANT EXECUTE ON FUNCTION payments.request(text, jsonb, text, text) TO %I', grantee);
    EXECUTE format('GRANT SELECT, INSERT, DELETE ON payments.console_sessions TO %I', grantee);
END
$$;

REVOKE ALL ON FUNCTION payments.grant_console(name) FROM PUBLIC;
