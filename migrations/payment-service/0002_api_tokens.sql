-- Who may use the API and the console. A token is 256 random bits, and stands here as its SHA-256 alone.

CREATE TABLE payments.api_tokens (
    token_id     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Whose it is: merchants see the payments of their own name, and operators leave it in the audit. No slash: payment order ids are
    -- made of `caller/Idempotency-Key/try`, which must be read in one way only.
    caller       text        NOT NULL CHECK (caller ~ '^[A-Za-z0-9._-]{1,64}$'),
    role         text        NOT NULL CHECK (role IN ('merchant', 'operator')),
    token_sha256 bytea       NOT NULL UNIQUE CHECK (length(token_sha256) = 32),
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Who says to have made it, or else whose session it was.
    created_by   text        NOT NULL CHECK (created_by ~ '[^[:space:]]' AND length(created_by) <= 100),
    revoked_at   timestamptz,
    revoked_by   text        CHECK (revoked_by ~ '[^[:space:]]' AND length(revoked_by) <= 100),
    CHECK ((revoked_at IS NULL) = (revoked_by IS NULL))
);

COMMENT ON TABLE payments.api_tokens IS 'Tokens of the API, as hashes. Written through payments.create_token() and payments.revoke_tokens() alone; never forgotten.';

-- What a token once was stays readable: its row changes once, when it is revoked.
CREATE TRIGGER revoked_once BEFORE UPDATE ON payments.api_tokens
    FOR EACH ROW
    WHEN (OLD.revoked_at IS NOT NULL OR NEW.revoked_at IS NULL
          OR (OLD.token_id, OLD.caller, OLD.role, OLD.token_sha256, OLD.created_at, OLD.created_by)
              IS DISTINCT FROM (NEW.token_id, NEW.caller, NEW.role, NEW.token_sha256, NEW.created_at, NEW.created_by))
    EXECUTE FUNCTION payments.refuse_change();
CREATE TRIGGER never_deleted BEFORE DELETE ON payments.api_tokens
    FOR EACH ROW EXECUTE FUNCTION payments.refuse_change();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON payments.api_tokens
    FOR EACH STATEMENT EXECUTE FUNCTION payments.refuse_change();

CREATE FUNCTION payments.create_token(caller text, role text, token_sha256 bytea, operator text) RETURNS bigint
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO payments.api_tokens (caller, role, token_sha256, created_by)
    VALUES (caller, role, token_sha256, coalesce(operator, session_user::text)) RETURNING token_id
$$;

-- Revokes one token, or all of a caller; what is not given does not narrow, and nothing given means none. Returns the tokens that it revoked.
CREATE FUNCTION payments.revoke_tokens(id bigint, whose text, operator text) RETURNS SETOF bigint
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE payments.api_tokens SET revoked_at = clock_timestamp(), revoked_by = coalesce(operator, session_user::text)
    WHERE revoked_at IS NULL AND (id IS NOT NULL OR whose IS NOT NULL)
      AND (id IS NULL OR token_id = id) AND (whose IS NULL OR caller = whose)
    RETURNING token_id
$$;

REVOKE ALL ON TABLE payments.api_tokens FROM PUBLIC;
REVOKE ALL ON FUNCTION payments.create_token(text, text, bytea, text), payments.revoke_tokens(bigint, text, text) FROM PUBLIC;

-- The service looks tokens up. It can neither make nor revoke one.
CREATE OR REPLACE FUNCTION payments.grant_service(grantee name) RETURNS void
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
    EXECUTE format('GRANT SELECT ON payments.commands, payments.command_items, payments.api_tokens TO %I', grantee);
    EXECUTE format('GRANT UPDATE (reason_code, reason, attempts, settled_at, outcome, copy_leased_until, copied_at) '
                   'ON payments.quarantine TO %I', grantee);
    EXECUTE format('GRANT UPDATE (outcome, reason, finished_at) ON payments.command_items TO %I', grantee);
END
$$;

-- An operator: reads everything, may ask for what payments.request() offers, and makes and revokes tokens.
CREATE OR REPLACE FUNCTION payments.grant_operator(grantee name) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM payments.grant_reader(grantee);
    EXECUTE format('GRANT EXECUTE ON FUNCTION payments.request(text, jsonb, text, text), '
                   'payments.create_token(text, text, bytea, text), payments.revoke_tokens(bigint, text, text) TO %I', grantee);
END
$$;
