-- Orders are claimed per PSP: a PSP that is left alone, with however many orders waiting, is not walked past by the others' claims.

DROP INDEX executor.inbox_queued;
DROP INDEX executor.inbox_resolving;
CREATE INDEX inbox_queued ON executor.inbox (psp, due_at) WHERE state = 'QUEUED';
CREATE INDEX inbox_resolving ON executor.inbox (psp, due_at) WHERE state = 'RESOLVING';
