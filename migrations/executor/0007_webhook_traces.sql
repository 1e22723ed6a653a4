-- What a PSP tells is worked off later, maybe by another process: the step in which it came stays findable.

ALTER TABLE executor.webhooks ADD COLUMN traceparent text;
COMMENT ON COLUMN executor.webhooks.traceparent IS 'The step (span) in which it was received, if spans were exported then. What follows from it is of the payment''s own trace, and linked to this.';
