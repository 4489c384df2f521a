"""Seeds and digests that depend on what they are made of alone, on every machine and Python."""

import hashlib


def stable_seed(*parts: object) -> int:
    """A seed in [0, 2**63) that depends on `parts` alone, on every machine and Python."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def digest(text: str) -> str:
    """A digest of 16 hexadecimal digits of a text."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
