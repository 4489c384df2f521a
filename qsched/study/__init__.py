"""A study file -> one frozen, validated object, complete by itself.

`file` composes the rooms' tables, `study` is the object, `fingerprint` what its values depend on,
`template` writes commented study files. Begin with `study`.
"""
