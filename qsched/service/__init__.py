"""Studies in a shared database: slots under leases, worked by any number of workers.

`address` reads a URL, `database` opens it, `foundation` lays the tables of `schema`; `storage` has
the studies, `queue` the slots of one, `trials` its mirror in Optuna; `stored_study` puts them
together; `worker` claims, scores (`evaluator`) and finishes, while `heartbeat` renews its lease;
`launchers` start several. Begin with `worker`.
"""
