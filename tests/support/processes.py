"""Processes that begin in a moment: forks of one that has imported what takes seconds."""

import multiprocessing

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        "alembic.script",
        "optuna.storages._rdb.models",
        "psycopg",
        "qsched.service.evaluator",
        "qsched.service.stored_study",
        "qsched.service.worker",
    ]
)
