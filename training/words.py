"""The demo model's tokens: every word of the caption language is one."""

from functools import cache

from open_clip.tokenizer import bytes_to_unicode
from torch import Tensor
from transformers import CLIPTokenizer

from qsched.demo import captions as language

TOKENS = 16
BYTES = bytes_to_unicode().values()


@cache
def merges() -> list[tuple[str, str]]:
    """Byte-pair merges that make one token of every word of the caption language."""
    words = {
        word for c in language.sample_many(20_000, 0, held_out=False) for word in str(c).split()
    }
    found: list[tuple[str, str]] = []
    for word in sorted(words):
        parts = [*word[:-1], word[-1] + "</w>"]
        for left, right in found:
            at = 0
            while at < len(parts) - 1:
                if (parts[at], parts[at + 1]) == (left, right):
                    parts[at : at + 2] = [left + right]
                at += 1
        while len(parts) > 1:
            found.append((parts[0], parts[1]))
            parts[:2] = [parts[0] + parts[1]]
    return found


def new_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary of bytes, the merges, and CLIP's two special tokens."""
    tokens = [*BYTES, *(b + "</w>" for b in BYTES), *(a + b for a, b in merges())]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges(), model_max_length=TOKENS)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token numbers (N, 16), padded as the pipeline pads."""
    batch = tokenizer(
        texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    )
    tokens: Tensor = batch.input_ids
    return tokens
