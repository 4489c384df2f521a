"""Real workers on a real database under random faults; then the invariants, from SQL.

    python -m tests.support.faults --database postgresql --faults 1000 --seed 0

Eight worker processes on two machines of one name score a fast fake objective. A seeded generator
kills, terminates and stops them for longer than their lease, restarts the server and the pooler
without a goodbye, cuts connections and takes the network away at a proxy; it pauses, extends,
deletes the study and creates another one of its name while workers wait or sleep, and kills these
commands at any instruction. Each worker writes down every image that it makes and every batch that
is committed, so that the database can be held against what was reported (the method of Jepsen); a
score tells which study it was made for.
"""
