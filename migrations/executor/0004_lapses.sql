-- A claim that lapses again and again, because the database refuses what follows or the process dies of it, has an end.

ALTER TABLE executor.inbox ADD COLUMN lapses smallint NOT NULL DEFAULT 0 CHECK (lapses >= 0);
COMMENT ON COLUMN executor.inbox.lapses IS 'Claims that ran out since the last answer that was recorded. From the third on each takes a step of the ladder.';
