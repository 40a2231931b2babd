from pathlib import Path

from distill_tune.data import docstring_rows

SOURCE = '''
def area(width: int, height: int = 1) -> int:
    """The area of a rectangle
    whose sides are given.

    Args:
        width: left to right
    """

class Box:
    """A thing with six sides and, perhaps, something inside.

    More about it.
    """
    def _hidden(self):
        """Not shown, for its name begins with an underscore."""

def short():
    """Too short."""
'''


def test_rows_are_questions_with_the_descriptions_as_answers(tmp_path: Path):
    (tmp_path / "shapes.py").write_text(SOURCE)
    assert list(docstring_rows.rows_of_module("shapes", tmp_path / "shapes.py")) == [
        {
            "instruction": "What does the function shapes.area(width: int, height: int=1) do?",
            "output": "The area of a rectangle whose sides are given.",
            "module": "shapes",
        },
        {
            "instruction": "What is the class shapes.Box?",
            "output": "A thing with six sides and, perhaps, something inside. More about it.",
            "module": "shapes",
        },
    ]


def test_no_module_is_on_both_sides_and_the_split_is_fixed():
    train = docstring_rows.collect(500, held_out=False)
    held_out = docstring_rows.collect(100, held_out=True)
    assert len(train) == 500
    assert not {row["module"] for row in train} & {row["module"] for row in held_out}
    # By sha256 of the name, so the same everywhere: the first byte of json's is 0x02, of textwrap's 0x9b.
    assert docstring_rows.is_held_out("json")
    assert not docstring_rows.is_held_out("textwrap")
