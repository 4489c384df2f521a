"""Scorers, which judge images one by one, and JAQ, the objective that is made of them.

`catalog` declares the scorers by name and `table` the `[objective]`; `scorers` runs them, checked;
`loading` has them loaded; `clip`, `iqa`, `similarity` and `phrases` are what they see with; `jaq`
is pure arithmetic. Begin with `scorers`.
"""
