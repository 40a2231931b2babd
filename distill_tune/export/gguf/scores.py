"""Scores of a SentencePiece vocabulary that join its pieces as a list of merges does."""

from collections.abc import Mapping, Sequence


def scores(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> list[float] | None:
    """What joins first scores highest: minus the rank of a token's first merge, 0 for what no merge makes.

    SentencePiece and llama.cpp join any two neighbours whose text together is a token, that with the highest score
    first; a list of merges says which two may join, and in which order. transformers makes such a list of a
    SentencePiece vocabulary: of each token, all pairs of tokens that spell it.

    Args:
        vocabulary: without added tokens.

    Returns:
        For each id; None where two tokens spell a third one that the list does not let them join to: a tokenizer that
        was trained on merges.
    """
    of, known = [0.0] * (max(vocabulary.values()) + 1), set(merges)
    made: set[str] = set()
    for rank, (left, right) in enumerate(merges):
        if (token := left + right) not in made:
            of[vocabulary[token]] = -float(rank)
            made.add(token)
    for token in made:
        for cut in range(1, len(token)):
            pair = (token[:cut], token[cut:])
            if pair not in known and pair[0] in vocabulary and pair[1] in vocabulary:
                return None
    return of
