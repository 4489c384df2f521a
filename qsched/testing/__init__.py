"""What qsched asks of plug-ins, as tests: what it checks of the built-in ones, for everybody's own.

For the pytest module of a plug-in's author; each failure says what the plug-in doesn't keep:
`scorers`, `readers`, `backends`, `launchers`. Nothing else imports this room. Begin with `scorers`.
"""
