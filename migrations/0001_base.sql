-- Hosts. A host is one start of one process; the database clock is the only clock that leases know.

CREATE TABLE hosts (
    id               uuid PRIMARY KEY,
    address          text,
    version          text NOT NULL,
    labels           json NOT NULL,
    lease_expires_at timestamptz NOT NULL,
    started_at       timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 40); -- updated every second: room for HOT updates

-- A host's right to write. Apart from the lease, whose row changes every second, and one row per writer
-- shard, so that two shards never lock the same row: that would make a multixact of every batch.
CREATE TABLE host_fences (
    host_id uuid NOT NULL,
    shard   smallint NOT NULL,
    fenced  boolean NOT NULL DEFAULT false,
    PRIMARY KEY (host_id, shard)
);

-- Documents. One counter for all of them, changed in the transaction that changes a document, so that its order is
-- the order of commits. A sequence's is not: a reader could see the number before the row.

CREATE TABLE document_revision (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    revision bigint NOT NULL
);
INSERT INTO document_revision (revision) VALUES (0);

CREATE TABLE documents (
    kind       text NOT NULL,
    name       text NOT NULL,
    version    integer NOT NULL,
    hash       bytea NOT NULL,
    enabled    boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    revision   bigint NOT NULL,
    PRIMARY KEY (kind, name)
);

-- Outlives its document: executions run the version they started with.
CREATE TABLE document_versions (
    kind       text NOT NULL,
    name       text NOT NULL,
    version    integer NOT NULL,
    hash       bytea NOT NULL,
    body       json NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (kind, name, version)
);

-- Executions and their journal. Columns of fixed width first: no padding. Payloads are json, not jsonb: nobody
-- queries inside them, and text is cheaper to take in.

CREATE TABLE executions (
    id              uuid PRIMARY KEY,
    started_at      timestamptz NOT NULL,
    finished_at     timestamptz,
    version         integer NOT NULL,
    host_id         uuid,
    parent_id       uuid,
    retry_of        uuid,
    workflow        text NOT NULL,
    trigger         text NOT NULL,
    status          text NOT NULL
        CHECK (status IN ('queued', 'running', 'waiting', 'succeeded', 'failed', 'cancelled')),
    idempotency_key text,
    trace_id        text,
    input_hash      bytea,
    input           json NOT NULL,
    trigger_data    json,
    output          json,
    error           json
) WITH (fillfactor = 90); -- a status change is never HOT (it moves in an index), so little room is of use

CREATE UNIQUE INDEX executions_idempotency_key ON executions (workflow, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX executions_workflow ON executions (workflow, id);
CREATE INDEX executions_owned ON executions (host_id, id) WHERE status IN ('queued', 'running');

CREATE TABLE node_runs (
    execution_id uuid NOT NULL,
    started_at   timestamptz NOT NULL,
    finished_at  timestamptz NOT NULL,
    retry_at     timestamptz,
    seq          integer NOT NULL,
    visit        integer NOT NULL,
    attempt      integer NOT NULL,
    item_index   integer,
    parent_seq   integer,
    host_id      uuid NOT NULL,
    step         text NOT NULL,
    node_type    text NOT NULL,
    scope        text NOT NULL,
    status       text NOT NULL CHECK (status IN ('succeeded', 'failed', 'skipped', 'cancelled')),
    port         text,
    output       json,
    error        json,
    PRIMARY KEY (execution_id, seq) -- and no other index: this table takes most of all writes
);

CREATE TABLE waits (
    execution_id uuid NOT NULL,
    started_at   timestamptz NOT NULL,
    wake_at      timestamptz,
    child_id     uuid,
    key          text NOT NULL,
    kind         text NOT NULL,
    data         json,
    PRIMARY KEY (execution_id, key)
) WITH (fillfactor = 80);

CREATE INDEX waits_wake_at ON waits (wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX waits_child_id ON waits (child_id) WHERE child_id IS NOT NULL;

-- Sessions and their journal.

CREATE TABLE sessions (
    id              uuid PRIMARY KEY,
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    host_id         uuid,
    execution_id    uuid,
    agent           text NOT NULL,
    status          text NOT NULL CHECK (status IN ('idle', 'running')),
    idempotency_key text,
    usage           json NOT NULL
) WITH (fillfactor = 70); -- changed with every turn

CREATE UNIQUE INDEX sessions_idempotency_key ON sessions (idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX sessions_agent ON sessions (agent, id);
CREATE INDEX sessions_owned ON sessions (host_id, id) WHERE status = 'running';

CREATE TABLE session_events (
    session_id uuid NOT NULL,
    seq        bigint NOT NULL,
    created_at timestamptz NOT NULL,
    kind       text NOT NULL,
    payload    json NOT NULL,
    PRIMARY KEY (session_id, seq)
);

-- Keys of the API. The secret itself is nowhere.

CREATE TABLE api_keys (
    id         uuid PRIMARY KEY,
    name       text NOT NULL,
    hash       bytea NOT NULL UNIQUE,
    scopes     text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);
