"""Contract suites: what the author of a plug-in runs to know that it keeps its protocol.

Each checks a plug-in as qsched's own tests check the built-in ones, and fails with words:
`scorers`, `readers`, `backends`, `launchers`. Begin with `scorers`.
"""
