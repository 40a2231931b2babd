import io

import pytest
from rich.console import Console

from distill_tune.evaluation import Comparison, comparison_table

NAMES = ("meta-llama-Llama-3.2-8B-Instruct", "distilled", "outputs/distilled-again/model")


def shown(width: int) -> str:
    figures = {"parameters": 8_030_261_248, "perplexity": 12345.6, "agreement": 0.123, "kl": 10.456}
    rows = [Comparison(name, **figures, tokens_per_second=123_456.0, peak_memory_bytes=17 * 2**30) for name in NAMES]
    console = Console(file=io.StringIO(), width=width)
    console.print(comparison_table(rows, console))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [120, 80, 60, 40, 24])
def test_no_name_and_no_digit_is_lost_where_the_terminal_is_narrow(width):
    text = shown(width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    squeezed = "".join(text.split())
    for figure in ("8030.26M", "12345.6", "0.123", "10.456"):
        assert squeezed.count(figure) == len(NAMES)
    # a name may go on in the next line, after its row's numbers
    for name in NAMES:
        assert name[:16] in text


def test_memory_goes_first_then_speed_and_then_each_model_has_a_list():
    assert "17.0 GiB" in shown(80) and "123,456" in shown(80)
    assert "17.0 GiB" not in shown(75) and "123,456" in shown(75)
    assert "123,456" not in shown(62)
    assert "peak memory" in shown(40) and NAMES[0] in shown(40)
