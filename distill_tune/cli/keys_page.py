"""The table of keys as a page and as a help text. ``python -m distill_tune.cli.keys_page > docs/keys.md``"""

import textwrap

from distill_tune.config.keys import SECTIONS, Key, Needed

_HEAD = """# Keys

Every key that a config may have at its top level. A component is a mapping whose `_component_` names what to call, and
whose other keys are that one's arguments. Made from the table in
`distill_tune/config/keys.py`, by which configs are checked. A key that says "with" another is refused where that one is
not set, since nothing would heed it. A copied recipe may read keys of its own (README, "Copy and edit").
"""
_COLUMNS = "| key | may be | default | what it says |\n| --- | --- | --- | --- |\n"
_WIDTH = 80


def page() -> str:
    """docs/keys.md."""
    text = _HEAD
    for title, keys in SECTIONS.items():
        text += f"\n## {title}\n\n{_COLUMNS}"
        for name, key in keys.items():
            text += f"| `{name}` | {key.values.text} | {_default(key)} | {_said(key)} |\n"
    return text


def help_text() -> str:
    """For a terminal of 80 columns: each key with its default, what it says and may be."""
    lines = []
    for title, keys in SECTIONS.items():
        lines.append(f"{title}:")
        for name, key in keys.items():
            told = f"{_said(key)}; {key.values.text}".replace("`", "")
            lines.append(f"  {name} ({_default(key)})")
            lines += textwrap.wrap(told, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _default(key: Key) -> str:
    return "needed" if isinstance(key.default, Needed) else "null" if key.default is None else str(key.default)


def _said(key: Key) -> str:
    beside = " or ".join(key.beside)
    if key.recipes:
        return f"{key.meaning}; {', '.join(key.recipes)}" + (f", or others with {beside}" if beside else "")
    return key.meaning + (f" (with {beside})" if beside else "")


if __name__ == "__main__":
    print(page(), end="")
