"""Outcomes for people: a page and its numbers, what to take away, optuna-dashboard's note.

`writing` writes a study's folder, whose `files` have their names there; `page` is the HTML, `rows`
the held-out table everywhere, `settings` and `numerals` words and numbers, `figures` the charts, as
`drawing` draws them; `export` is the folder to take away, with its `card` and `sample_code`;
`gallery` and `artifacts` are for optuna-dashboard. Begin with `writing`.
"""
