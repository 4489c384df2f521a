"""The noun phrases of a caption, for the AQ-Map score.

TextBlob's pattern parser tags and chunks English by a lexicon and rules that ship inside its wheel
(0.6 MB, MIT licence, maintained): nothing is downloaded, and the same caption always gives the same
phrases. spaCy, which the Q-Sched code uses, has no model on PyPI by its authors. What it finds:

    a large flat owl on a pink background
        large flat owl | pink background
    An Eniac computer balanced on top of a stack of rocks over a river
        Eniac computer | stack | rocks | river
    Astronaut in a jungle, cold color palette, muted colors, detailed, 8k
        Astronaut | jungle | cold color palette | colors | 8k
    a woman is holding a red umbrella while walking her dog through Central Park
        woman | red umbrella | dog | Central Park
    A russian dance with men balancing vodka glasses on their heads
        russian dance | men balancing vodka glasses | heads

The last one shows its limits: "balancing" passes for a noun. Captions in other languages give what
the lexicon makes of unknown words, which it takes for nouns.
"""

from collections.abc import Iterator

_ARTICLES = ("DT", "PRP$", "WDT", "PDT")
"""Tags that a phrase may not begin with: articles, possessives, "this", "all"."""


def noun_phrases(caption: str) -> tuple[str, ...]:
    """The noun phrases of `caption` in order, each once, without their articles.

    A caption without any is a phrase itself.
    """
    found = dict.fromkeys(" ".join(words) for words in _chunks(caption))
    return tuple(found) or (caption,)


def _chunks(caption: str) -> Iterator[list[str]]:
    """The words of each chunk that holds a noun."""
    words: list[str] = []
    has_noun = False
    for word, tag, chunk in [*_tagged(caption), ("", "", "O")]:
        if chunk != "I-NP":
            if has_noun:
                yield words
            words, has_noun = [], False
        if chunk.endswith("-NP") and (words or tag not in _ARTICLES):
            words.append(word)
            has_noun = has_noun or (tag.startswith("NN") and any(map(str.isalnum, word)))


def _tagged(caption: str) -> Iterator[tuple[str, str, str]]:
    """(word, Penn tag, chunk tag) of each word."""
    from textblob.parsers import PatternParser

    for sentence in PatternParser().parse(caption).split():
        for word, tag, chunk, *_ in sentence:
            yield word.replace("&slash;", "/"), tag, chunk
