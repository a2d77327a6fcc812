"""The pages of the site that are made from the code: lists stay lists, formulas and columns stay as they are set."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "tools" / "site_pages.py"
DOCSTRING = """What it is, with a_k and b_k, and x * y_k.

    nn.W = sum_k a_k * b_k

The paper is followed (`variant:
paper_k`), **strictly**, where i < t:
  * the first
    goes on;
  * the second_k.
After the list.

`tuning: one` (default)   the_first
`tuning: other`           the second, `which`
                          goes on

End.
"""


@pytest.fixture(scope="module")
def pages():
    pytest.importorskip("mkdocs")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FILE.parent))
        return importlib.import_module("site_pages")


def html(text: str) -> str:
    import markdown

    return markdown.markdown(text, extensions=["tables"])


def test_a_docstring_as_markdown(pages) -> None:
    shown = html(pages.as_markdown(DOCSTRING))
    assert "<em>" not in shown
    assert "<msub><mi>a</mi><mrow><mi>k</mi></mrow></msub></math></span> and <span" in shown
    assert "<code>nn.W = sum_k a_k * b_k\n</code>" in shown
    assert (
        '<strong>strictly</strong>, where <span class="formula"><math><mi>i</mi><mo>&lt;</mo><mi>t</mi></math>' in shown
    )
    assert "</span>:</p>\n<ul>\n<li>the first\n    goes on;</li>" in shown
    assert "<li>the second_k.</li>\n</ul>\n<p>After the list.</p>" in shown
    columns = "tuning: one (default)     the_first\ntuning: other             the second, which\n"
    assert f"<code>{columns}                          goes on\n</code>" in shown
    assert shown.endswith("<p>End.</p>")


def test_the_page_of_methods(pages) -> None:
    text = pages._methods()
    assert re.findall(r"^## `(\w+)`", text, re.MULTILINE)[:2] == ["sd_lora", "rolda"]
    shown = html(text)
    prose = re.sub(r"<(pre|code)>.*?</\1>", "", shown, flags=re.DOTALL)
    assert not re.search(r"^ *[*-] ", prose, re.MULTILINE)  # a list that became a paragraph
    assert not re.findall(r"<em>[^<]*[_{}^|][^<]*</em>", prose)
    for list_of in ("sd_lora", "cl_lora", "coda_prompt", "dual_prompt", "ease", "inf_lora"):
        section = re.split(r"<h2>", shown.partition(f"<h2><code>{list_of}</code>")[2])[0]
        assert "<li>" in section, list_of
    assert "method card" not in text


def test_the_page_of_commands(pages) -> None:
    text = pages._commands()
    assert "    lorica export MODEL --to TO [--out FOLDER]" in text
    assert "| `--to TO` | `timm`, `hf`, `peft`, `onnx` | the library that is to load it |" in text
    assert "| `--points N` | `11` |" in text
    assert "    lorica rollback MODEL --to N " in text
    assert "    lorica forget MODEL CLASS… [--hide]" in text


def test_the_page_of_keys(pages) -> None:
    text = pages._keys()
    assert "| `fit.optimizer` | `adam`, `adamw`, `sgd` | `adam` |" in text
    assert "| `data.crop_pct` | number, above 0, at most 1 | `1.0` |" in text
    assert "| `data.bits` | integer, at least 9, at most 16, or `null` | `null` |" in text
    assert "| `method.projections` | list of texts | `[q, v]` |" in text
    assert "| `method.temperature` | list of 2 numbers, above 0 | `[5.0, 0.5]` |" in text
    assert "| `stream.classes_per_task` | integer or list of integers or `null` | `null` |" in text
    assert "('" not in re.sub(r"`[^`]*`", "", text)


def test_the_page_of_python_has_every_public_name(pages) -> None:
    import lorica

    text = pages._api()
    assert [name for name in lorica.__all__ if name != "run" and f"::: lorica.{name}\n" not in text] == []
    assert all(f"::: lorica.errors.{name}" in text for name in ("DataError", "RegressionError", "CheckpointError"))
