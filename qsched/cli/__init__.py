"""The command line: parse, call `api`, print.

`main` has the entry point; the commands stand in `studies`, `results` and `tools`.
`display` and `proof` are what is seen in a terminal; `doctor` examines a machine; `dashboard`
serves optuna-dashboard. Begin with `main`.
"""
