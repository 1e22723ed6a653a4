-- A key belongs to a caller and an operation; an order that a person has looked at leaves its review; payments are found by what people
-- know of them.

-- ----------------------------------------------------------------------------------------------------- idempotency

-- What was stored before belongs to the one operation that there was. The default stays, for versions that do not know of others.
ALTER TABLE payments.idempotency_keys ADD COLUMN operation text NOT NULL DEFAULT 'create-payment'
    CHECK (operation IN ('create-payment', 'retry-payment', 'resolve-payment-order'));
ALTER TABLE payments.idempotency_keys DROP CONSTRAINT idempotency_keys_pkey,
    ADD PRIMARY KEY (caller, operation, idempotency_key);

COMMENT ON COLUMN payments.idempotency_keys.response IS 'The answer''s body; of a refusal its detail.';
COMMENT ON COLUMN payments.payment_orders.payment_order_id IS 'UUIDv5 of caller, Idempotency-Key and whether the key made the payment or tried it again: asking again after a lost database meets the same PSP idempotency key.';

-- ------------------------------------------------------------------------------------------------------ resolutions

ALTER TABLE payments.payment_order_transitions DROP CONSTRAINT payment_order_transitions_decision_check;
ALTER TABLE payments.payment_order_transitions
    ADD CONSTRAINT payment_order_transitions_decision_check
        CHECK (decision IN ('APPLIED', 'DUPLICATE', 'STALE', 'CONFLICT', 'BY_HAND', 'RESOLVED')) NOT VALID,
    -- Nobody resolves anything without a name and a reason.
    ADD CONSTRAINT payment_order_transitions_resolved_check
        CHECK (decision <> 'RESOLVED'
               OR coalesce(btrim(operator) <> '' AND length(operator) <= 100
                           AND btrim(note) <> '' AND length(note) <= 1000 AND event_id IS NULL, false)) NOT VALID;
ALTER TABLE payments.payment_order_transitions VALIDATE CONSTRAINT payment_order_transitions_decision_check;
ALTER TABLE payments.payment_order_transitions VALIDATE CONSTRAINT payment_order_transitions_resolved_check;

COMMENT ON TABLE payments.payment_order_transitions IS 'One row per event that was decided upon, whatever the decision, one per creation, one per resolution by a person, and one per change by hand. Append-only.';

-- The second guard of the state machine. A review ends, and a charge that was given back is failed, only where the audit says who has
-- decided so, and why: its newest line of the order.
CREATE OR REPLACE FUNCTION payments.refuse_illegal_transition() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    resolved boolean;
BEGIN
    IF NEW.state <> OLD.state AND NOT (
        (OLD.state IN ('CREATED', 'PENDING', 'UNKNOWN') AND NEW.state <> 'CREATED')
        OR (OLD.state IN ('SUCCESSFUL', 'FAILED') AND NEW.state = 'NEEDS_REVIEW')
    ) THEN
        SELECT (t.decision, t.from_state, t.to_state) = ('RESOLVED', OLD.state, NEW.state) INTO resolved
        FROM payments.payment_order_transitions t
        WHERE t.payment_order_id = OLD.payment_order_id ORDER BY t.transition_id DESC LIMIT 1;
        IF NOT (coalesce(resolved, false)
                AND (OLD.state = 'NEEDS_REVIEW' AND NEW.state IN ('SUCCESSFUL', 'FAILED')
                     OR OLD.state = 'SUCCESSFUL' AND NEW.state = 'FAILED')) THEN
            RAISE EXCEPTION 'payment order % may not go from % to %', OLD.payment_order_id, OLD.state, NEW.state;
        END IF;
    END IF;
    -- Which charge it was does not change once it is known, except that a late success names the charge to look at.
    IF OLD.state = 'SUCCESSFUL' AND NEW.psp_reference IS DISTINCT FROM OLD.psp_reference AND OLD.psp_reference IS NOT NULL THEN
        RAISE EXCEPTION 'payment order % may not change its PSP reference', OLD.payment_order_id;
    END IF;
    RETURN NEW;
END
$$;

-- A payment leaves its review when none of its orders needs a person any more, for the status that follows from them. It leaves success for
-- review alone.
CREATE OR REPLACE FUNCTION payments.refuse_illegal_status() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    derived text;
BEGIN
    IF OLD.status = 'NEEDS_REVIEW' THEN
        SELECT CASE WHEN bool_or(o.state = 'NEEDS_REVIEW') OR count(*) FILTER (WHERE o.state = 'SUCCESSFUL') > 1 THEN 'NEEDS_REVIEW'
                    WHEN bool_or(o.state = 'SUCCESSFUL') THEN 'SUCCESSFUL'
                    ELSE (array_agg(o.state ORDER BY o.try DESC))[1] END INTO derived
        FROM payments.payment_orders o WHERE o.payment_id = OLD.payment_id;
        IF NEW.status = derived THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION 'payment % may not go from % to %', OLD.payment_id, OLD.status, NEW.status;
END
$$;

-- ----------------------------------------------------------------------------------------------------------- search

-- Newest first, of one merchant and of all.
CREATE INDEX payments_of_caller ON payments.payments (caller, created_at, payment_id);
CREATE INDEX payments_newest ON payments.payments (created_at, payment_id);
CREATE INDEX payments_merchant_reference ON payments.payments (merchant_reference, created_at, payment_id);
CREATE INDEX payments_trace ON payments.payments (trace_id, created_at, payment_id);
-- Most payments have come to an end, and are found among the newest; the others are few.
CREATE INDEX payments_unsettled ON payments.payments (status, created_at, payment_id)
    WHERE status IN ('CREATED', 'PENDING', 'UNKNOWN', 'NEEDS_REVIEW');
DROP INDEX payments.payments_in_review;
-- Every reference that a PSP ever named, also the second one of an order that was charged twice; and an index that no update of an order
-- has to keep.
CREATE INDEX payment_order_transitions_psp_reference ON payments.payment_order_transitions (psp_reference)
    WHERE psp_reference IS NOT NULL;
