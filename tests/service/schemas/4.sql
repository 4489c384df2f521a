-- Schema of qsched 0.2, with trials of some prompts, as SQLite has it.

CREATE TABLE qsched_schema (
    version INTEGER NOT NULL,
    PRIMARY KEY (version)
);

CREATE TABLE qsched_self_tests (
    fingerprint VARCHAR(64) NOT NULL,
    hardware TEXT NOT NULL,
    result JSON NOT NULL,
    PRIMARY KEY (fingerprint, hardware)
);

CREATE TABLE qsched_studies (
    id VARCHAR(32) NOT NULL,
    name VARCHAR(64) NOT NULL,
    definition TEXT NOT NULL,
    fingerprint JSON NOT NULL,
    accepted JSON NOT NULL,
    hardware JSON,
    outcome JSON,
    gauge JSON,
    paused BOOLEAN NOT NULL,
    created DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (name)
);

CREATE TABLE qsched_slots (
    study VARCHAR(32) NOT NULL,
    number INTEGER NOT NULL,
    state VARCHAR(16) NOT NULL,
    attempt INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    lost INTEGER NOT NULL,
    worker VARCHAR(64),
    lease DOUBLE,
    vector JSON,
    trial INTEGER,
    prompts JSON,
    origin INTEGER,
    value DOUBLE,
    reason TEXT,
    finished DOUBLE,
    PRIMARY KEY (study, number),
    FOREIGN KEY(study) REFERENCES qsched_studies (id)
);

CREATE INDEX qsched_slots_finished ON qsched_slots (study, finished);

CREATE INDEX qsched_slots_open ON qsched_slots (study, number) WHERE state IN ('waiting', 'running');

CREATE INDEX qsched_slots_state ON qsched_slots (study, state);

CREATE TABLE qsched_workers (
    id VARCHAR(64) NOT NULL,
    study VARCHAR(32) NOT NULL,
    machine VARCHAR(255) NOT NULL,
    host VARCHAR(255) NOT NULL,
    pid INTEGER NOT NULL,
    hardware JSON NOT NULL,
    state VARCHAR(16) NOT NULL,
    started DOUBLE NOT NULL,
    seen DOUBLE NOT NULL,
    images INTEGER NOT NULL,
    seconds DOUBLE NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(study) REFERENCES qsched_studies (id)
);

CREATE INDEX ix_qsched_workers_study ON qsched_workers (study);

CREATE TABLE qsched_scores (
    study VARCHAR(32) NOT NULL,
    slot INTEGER NOT NULL,
    prompt INTEGER NOT NULL,
    metric VARCHAR(64) NOT NULL,
    value DOUBLE NOT NULL,
    seconds DOUBLE NOT NULL,
    PRIMARY KEY (study, slot, prompt, metric),
    FOREIGN KEY(study, slot) REFERENCES qsched_slots (study, number)
);

INSERT INTO qsched_schema VALUES (3);
