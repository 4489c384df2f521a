"""Outcomes for people: a page and its numbers, what to take away, optuna-dashboard's note.

`writing` writes a study's folder; `page` is the HTML, `figures` its charts, as `drawing` draws
them, `numerals` how numbers are written; `export` is the folder to take away, with its `card` and
`sample_code`; `gallery` and `artifacts` are for optuna-dashboard. Begin with `writing`.
"""
