"""Images as pictures for people: grids with captions, contact sheets, and where they are kept.

`table` is the `[gallery]` table, `sheets` draws. Begin with `sheets`.
"""
