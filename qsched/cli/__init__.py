"""The command line: parse, call `api`, print.

`main` has the entry point; commands stand in the file that is named by what people do with them.
`display` and `proof` are what is seen in a terminal; `doctor` examines a machine; `dashboard`
serves optuna-dashboard. Begin with `main`.
"""
