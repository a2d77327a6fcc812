"""Equations of docstrings as MathML: what is understood is set with all its symbols, everything else stays as it is."""

from __future__ import annotations

import ast
import importlib
import re
import unicodedata
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
METHODS = sorted((ROOT / "lorica" / "methods").glob("*.py"))
GREEK = ("alpha", "beta", "epsilon", "lambda", "mu", "nu", "phi", "sigma", "tau", "Sigma")


@pytest.fixture
def equations(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("equations")


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("site_pages")


class Text(HTMLParser):
    """What a reader sees of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.hidden = "", False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden = tag == "annotation"

    def handle_endtag(self, tag: str) -> None:
        self.hidden = False

    def handle_data(self, data: str) -> None:
        self.seen += "" if self.hidden else data


def text_of(html: str) -> str:
    parser = Text()
    parser.feed(html)
    return parser.seen


def symbols(text: str) -> tuple[str, int]:
    """All characters but those that only set a formula or a page; and the number of primes, whose place differs."""
    for name in GREEK:
        size = "CAPITAL" if name[0].isupper() else "SMALL"
        letter = unicodedata.lookup(f"GREEK {size} LETTER {name.upper().replace('LAMBDA', 'LAMDA')}")
        text = re.sub(rf"(?<![A-Za-z]){name}(?![A-Za-z])", letter, text)
    text = re.sub(r"(?<![A-Za-z])sum(?![A-Za-z])", "∑", text)
    for told, drawn in (("sqrt", ""), ("<-", "←"), ("<=", "≤"), (">=", "≥"), ("!=", "≠"), (":=", "≔"), ("+-", "±")):
        text = text.replace(told, drawn)
    for told, drawn in (("||", "‖"), ("−", "-"), ("∼", "~"), ("’", "'"), ("′", "'")):
        text = text.replace(told, drawn)
    return re.sub(r"[\s_^/*∗(){}`']", "", text), text.count("'")


def docstring(file: Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text())) or ""


def paragraphs(text: str) -> Iterator[list[str]]:
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.splitlines()
        if lines and all(line.startswith("    ") for line in lines):
            yield lines


@pytest.mark.parametrize("file", METHODS, ids=lambda file: file.stem)
def test_nothing_of_a_docstring_is_lost_or_changed(file: Path, pages: ModuleType) -> None:
    import markdown

    html = markdown.markdown(pages.as_markdown(docstring(file)), extensions=["tables", "attr_list"])
    assert symbols(text_of(html)) == symbols(docstring(file))


@pytest.mark.parametrize("file", METHODS, ids=lambda file: file.stem)
def test_a_block_is_set_whole_or_stays_code(file: Path, equations: ModuleType, pages: ModuleType) -> None:
    shown = pages.as_markdown(docstring(file))
    for lines in paragraphs(docstring(file)):
        drawn = equations.equations(lines)
        if drawn is None:
            assert all(line in shown.splitlines() for line in lines)
        else:
            assert drawn in shown
            assert symbols(text_of(drawn)) == symbols("\n".join(lines))
            assert [text_of(each) for each in re.findall(r"<b>.*?</b>", drawn)] == [
                found for line in lines for found in re.findall(r" {2}(\((?:paper, )?(?:Eq. )?\d+\))$", line)
            ]


def test_the_blocks_that_stay_code_are_tables(equations: ModuleType) -> None:
    blocks = [(file.stem, lines) for file in METHODS for lines in paragraphs(docstring(file))]
    code = [(file, lines[-1].split()[0]) for file, lines in blocks if equations.equations(lines) is None]
    assert code == [
        ("aper", "full"),
        ("base", "end_task(context)"),
        ("hide_prompt", "variance"),
        ("readout", "(docs/readouts.md)"),
    ]
    assert len(blocks) > 30


@pytest.mark.parametrize(
    ("source", "drawn"),
    [
        ("x", "<mi>x</mi>"),
        ("W0_k", "<msub><mi>W</mi><mrow><mn>0</mn><mi>k</mi></mrow></msub>"),
        ("u_j'", '<msubsup><mi>u</mi><mrow><mi>j</mi></mrow><mrow><mo class="prime">′</mo></mrow></msubsup>'),
        ("P_o,tau", '<msub><mi>P</mi><mrow><mi>o</mi><mo separator="true">,</mo><mi>τ</mi></mrow></msub>'),
        ("x / (y + 1)", "<mfrac><mrow><mi>x</mi></mrow><mrow><mi>y</mi><mo>+</mo><mn>1</mn></mrow></mfrac>"),
        ("a b / c", "<mfrac><mrow><mi>a</mi><mi>b</mi></mrow><mrow><mi>c</mi></mrow></mfrac>"),
        ("a b/c d", "<mi>a</mi><mfrac><mrow><mi>b</mi></mrow><mrow><mi>c</mi></mrow></mfrac><mi>d</mi>"),
        ("-sqrt(d)", '<mo form="prefix">−</mo><msqrt><mi>d</mi></msqrt>'),
        ("sum_k k", '<munder><mo>∑</mo><mrow><mi>k</mi></mrow></munder><mspace width="0.17em"></mspace><mi>k</mi>'),
        ("x <= 1e-4", "<mi>x</mi><mo>≤</mo><mn>1e−4</mn>"),
        ("a mean of x", "<mtext>a mean of\N{NO-BREAK SPACE}</mtext><mi>x</mi>"),
        ("x over a set", "<mi>x</mi><mtext>\N{NO-BREAK SPACE}over a set</mtext>"),
    ],
)
def test_what_is_drawn(source: str, drawn: str, equations: ModuleType) -> None:
    assert equations.formula(source, display=True) == f'<math displaystyle="true">{drawn}</math>'


@pytest.mark.parametrize(
    "source",
    [
        *("1/2n x", "a / b / c", "x / 2 n", "log x / y", "a /", "/ a"),  # what is divided by what?
        *("f(x", "x)", "[x, y)", "|| x", "W_{k", "()"),
        *("P_a_b", "x_", "x _k", "x^ 2", "x_ k", "P_c,f(x)"),
        *("nn.Linear", "dU", "2 3", "a = b: c", "x ? y", "W\\k", "α"),
    ],
)
def test_what_is_not_understood_is_refused(source: str, equations: ModuleType) -> None:
    with pytest.raises(equations.NotUnderstoodError):
        equations.formula(source, display=True)
    assert equations.equations([f"    y = {source}"]) is None


def test_a_paragraph_with_a_line_that_is_none_stays_as_it_is(equations: ModuleType) -> None:
    assert equations.equations(["    x = y    (1)", "    variant: other    x = z"]) is None
    assert equations.equations([]) is None


@pytest.mark.parametrize(
    ("prose", "formulas"),
    [
        ("where alpha_k is one, U_k, D_k are not", ["αk", "Uk", "Dk"]),
        ("a plain word, a sd_lora name, ViT-B/16, the k-th one, l2p", []),
        ("(U = 0 at the start)", ["U=0"]),
        ("tau = 9e-4 never fires; lambda is chosen", ["τ=9e−4", "λ"]),
        ("Sigma starts a sentence. A x starts another one", ["x"]),
        ("uniform in +-1/sqrt(d_in), as x is", ["±1/din", "x"]),
        ("task i's own, in tau's space", []),
        ("see Figs. 2b and 2c, rows A and B, 5 s", []),
        ("of (I - M M') C (I - M M') it is", ["(I−MM′)C(I−MM′)"]),
    ],
)
def test_formulas_in_prose(prose: str, formulas: list[str], equations: ModuleType) -> None:
    pieces = equations.in_prose(prose, set("ACIMx"))
    assert "".join(text for text, _ in pieces) == prose
    assert [text_of(drawn) for _, drawn in pieces if drawn] == formulas
