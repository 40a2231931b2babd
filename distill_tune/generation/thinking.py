"""What a model thinks before it answers, told from the answer."""

BEGIN, END = "<think>", "</think>"


def split_thinking(text: str, is_open: bool = False) -> tuple[str, str]:
    """
    Args:
        text: as the model has written it.
        is_open: the prompt has begun the thought already, as some templates do.

    Returns:
        The first thought, empty where there is none, and the rest. A thought without an end goes on to the text's.
    """
    end = text.find(END)
    start = text.find(BEGIN, 0, end if end >= 0 else None)
    if start < 0 and not is_open and end < 0:
        return "", text
    before, first = (text[:start], start + len(BEGIN)) if start >= 0 else ("", 0)
    if end < 0:
        return text[first:].strip(), before
    return text[first:end].strip(), before + text[end + len(END) :].lstrip("\n")
