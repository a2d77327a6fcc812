"""Equations as the docstrings write them, in plain characters, as MathML, which browsers draw by themselves.

    W = W0 + sum_{k<=t} alpha_k U_k D_k / ||U_k D_k||_F          a remark          (paper, Eq. 4)

Products are written side by side, scripts with _ and ^, Greek letters by their names, norms with bars, fractions with
/, and words where words are meant; two spaces or more divide a line into formulas, remarks and a number. What is not
understood, to the last character, is refused (`NotUnderstoodError`), and stays what it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise

GREEK = {
    "alpha": "α",
    "beta": "β",
    "gamma": "γ",
    "delta": "δ",
    "epsilon": "ε",
    "eta": "η",
    "theta": "θ",
    "lambda": "λ",
    "mu": "μ",
    "nu": "ν",
    "rho": "ρ",
    "sigma": "σ",
    "tau": "τ",
    "phi": "φ",
    "chi": "χ",
    "omega": "ω",
    "Delta": "Δ",
    "Sigma": "Σ",
    "Lambda": "Λ",
    "Phi": "Φ",
}
OPERATORS = {
    ":=": "≔",
    "<-": "←",
    "->": "→",
    "<=": "≤",
    ">=": "≥",
    "!=": "≠",
    "+-": "±",
    "-": "−",
    "*": "∗",
    "~": "∼",
} | {each: each for each in "+=<>…"}
RELATIONS = (":=", "<-", "<=", ">=", "!=", "~", "=", "<", ">")
_SPACE = "\N{NO-BREAK SPACE}"
_FENCES = {"(": ")", "[": "]", "||": "||", "|": "|", "{": "}"}
_DRAWN = {"||": "‖", "[": "&#91;", "]": "&#93;"}
_OVER_INDICES = ("sum", "mean")
_LIMITS = (*_OVER_INDICES, "min", "max", "argmin", "argmax")
_FUNCTIONS = (*_LIMITS, "cos", "exp", "ln", "log", "sign", "tr")
_NAMES = ("CE", "GELU", "KD", "LN", "ORTH")
_SHORT = ("an", "as", "at", "by", "in", "is", "it", "of", "on", "or", "so", "to")
_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<number>\d+(?:,\d{3})+(?!\d)|\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
    r"|(?P<word>[A-Za-z]{2,}(?:-[A-Za-z]{2,})*(?:'s\b)?)"
    r"|(?P<letter>[A-Za-z])"
    r"|(?P<sign>:=|<-|->|<=|>=|!=|\+-|\|\||[-+*/=<>~…()\[\]{},;|'^_])"
)
_NUMBER_OF_EQUATION = re.compile(r"\((?:paper, )?(?:Eqs?\. )?\d+\)")


class NotUnderstoodError(Exception):
    """Something that is no formula of this notation, or could be read in two ways."""


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    glued: bool
    """Whether it follows the one before without a space."""


@dataclass(frozen=True)
class _Node:
    kind: str
    """factor, number, function, over (a sum), operator, separator, slash, text."""
    drawn: str
    glued: bool = False
    inside: str = ""
    """Of a group in parentheses, what they hold."""


def equations(lines: list[str]) -> str | None:
    """A paragraph of indented lines as HTML; None where one of them does not begin with an equation, or is not
    understood."""
    drawn = [_line(line) for line in lines]
    if not drawn or None in drawn:
        return None
    return '<div class="equations">' + "".join(f"<div>{each}</div>" for each in drawn) + "</div>"


def formula(text: str, *, display: bool = False) -> str:
    """MathML.

    Raises:
        NotUnderstoodError: it is not a formula.
    """
    parser = _Parser(list(_tokens(text)), display)
    inside = _row(parser.sequence(()), display)
    if parser.left:
        raise NotUnderstoodError(text)
    style = ' displaystyle="true"' if display else ""
    return f"<math{style}>{inside}</math>"


def symbols(text: str) -> set[str]:
    """The letters that a text has formulas about: what they stand for where they stand alone."""
    shown = [
        part for line in text.splitlines() if line.startswith("    ") for part in _parts(line)[0] if _is_equation(part)
    ]
    in_passing = [piece for piece, drawn in in_prose(text, set()) if drawn]
    return {
        token.text
        for each in (*shown, *in_passing)
        for token in _tokens(each)
        if token.kind == "letter" or token.text in GREEK
    }


def in_prose(text: str, known: set[str]) -> list[tuple[str, str | None]]:
    """A text in pieces, each with its MathML if it is a formula: something with a script, a Greek letter or a
    relation, or a letter of `known`."""
    pieces: list[tuple[str, str | None]] = []
    done = 0
    for start, end in _candidates(text):
        found = _drawn_in_prose(text, start, end, known)
        if found is not None:
            begins, drawn = found
            pieces += [(text[done:begins], None), (text[begins:end], drawn)]
            done = end
    return [*pieces, (text[done:], None)]


def _tokens(text: str) -> Iterator[_Token]:
    place, glued = 0, False
    while place < len(text):
        found = _TOKEN.match(text, place)
        if not found:
            raise NotUnderstoodError(text)
        place = found.end()
        kind = str(found.lastgroup)
        if kind != "space":
            yield _Token(kind, found[0], glued)
        glued = kind != "space"


class _Parser:
    def __init__(self, tokens: list[_Token], display: bool) -> None:
        self.left, self.display = tokens, display

    def next_is(self, *texts: str, glued: bool = False) -> bool:
        return bool(self.left) and self.left[0].text in texts and (self.left[0].glued or not glued)

    def take(self) -> _Token:
        if not self.left:
            raise NotUnderstoodError("ends too early")
        return self.left.pop(0)

    def sequence(self, closing: tuple[str, ...]) -> list[_Node]:
        nodes: list[_Node] = []
        while self.left and not self.next_is(*closing):
            token = self.left[0]
            if token.text in OPERATORS:
                self.take()
                alone = not nodes or nodes[-1].kind in ("operator", "separator")
                if alone and token.text == "*":
                    raise NotUnderstoodError("a product of one")
                form = ' form="prefix"' if alone and token.text in ("-", "+", "+-") else ""
                nodes.append(_Node("operator", f"<mo{form}>{escape(OPERATORS[token.text])}</mo>", token.glued))
            elif token.text in (",", ";"):
                self.take()
                nodes.append(_Node("separator", f'<mo separator="true">{token.text}</mo>', token.glued))
            elif token.text == "/":
                self.take()
                nodes.append(_Node("slash", "<mo>/</mo>", token.glued))
            else:
                nodes.append(self.factor())
        return nodes

    def factor(self) -> _Node:
        """Something that can be multiplied, with its scripts; or words."""
        token = self.take()
        node = self.base(token)
        node = self.scripts(node)
        applied = token.kind in ("letter", "word") and node.kind != "text" and self.next_is("(", glued=True)
        if applied:
            group = self.scripts(self.group(self.take()))
            node = _Node("factor", f"<mrow>{node.drawn}{group.drawn}</mrow>")
        return replace(node, glued=token.glued)

    def base(self, token: _Token) -> _Node:
        text = token.text
        if token.kind == "number":
            return _Node("number", f"<mn>{text.replace('-', '−')}</mn>")
        if token.kind == "letter" or text in GREEK:
            return _Node("factor", f"<mi>{GREEK.get(text, text)}</mi>")
        if text == "sqrt" and self.next_is("(", glued=True):
            return _Node("factor", f"<msqrt>{self.group(self.take()).inside}</msqrt>")
        if token.kind == "word":
            if text == "mean" and self.left and self.left[0].text == "of":
                return _Node("text", text)
            if text in _FUNCTIONS or text in _NAMES or self.next_is("(", "_", glued=True):
                if text == "sum":
                    return _Node("over", "<mo>∑</mo>")
                kind = "over" if text in _OVER_INDICES else "factor" if text in _NAMES else "function"
                return _Node(kind, f'<mtext class="name">{text}</mtext>')
            if (len(text) > 2 or text in _SHORT) and not self.next_is("'", "^", glued=True):
                if self.left and self.left[0].glued and self.left[0].kind != "sign":
                    raise NotUnderstoodError(text)
                return _Node("text", text)
        if text in _FENCES and text != "{":
            return self.group(token)
        raise NotUnderstoodError(text)

    def group(self, opening: _Token) -> _Node:
        closing = _FENCES[opening.text]
        inside = _row(self.sequence((closing,)), self.display)
        if self.take().text != closing or not inside:
            raise NotUnderstoodError(opening.text)
        fences = [
            f'<mo form="{form}">{_DRAWN.get(each, each)}</mo>'
            for form, each in (("prefix", opening.text), ("postfix", closing))
        ]
        if "|" in closing:
            fences = [each.replace("<mo ", '<mo stretchy="true" fence="true" ') for each in fences]
        return _Node(
            "factor", f"<mrow>{fences[0]}{inside}{fences[1]}</mrow>", inside=inside if opening.text == "(" else ""
        )

    def scripts(self, node: _Node) -> _Node:
        below, above = "", ""
        if node.drawn.startswith("<mi>") and self.left and self.left[0].kind == "number" and self.left[0].glued:
            below = f"<mn>{self.take().text}</mn>"
        while self.next_is("'", "_", "^", glued=True):
            sign = self.take().text
            if sign == "'":
                above += '<mo class="prime">′</mo>'
            elif sign == "_":
                if below and "<mn>" not in below:
                    raise NotUnderstoodError("two subscripts")
                below += self.script()
            else:
                above += self.script(above=True)
        if not below and not above:
            return node
        if node.kind == "text":
            raise NotUnderstoodError("a script of a word")
        limited = any(f">{each}<" in node.drawn for each in ("∑", *_LIMITS))
        limits = self.display and node.kind in ("over", "function") and limited
        if limits and not above:
            return replace(node, drawn=f"<munder>{node.drawn}<mrow>{below}</mrow></munder>", inside="")
        name = {(True, False): "msub", (False, True): "msup", (True, True): "msubsup"}[bool(below), bool(above)]
        rows = "".join(f"<mrow>{each}</mrow>" for each in (below, above) if each)
        kind = node.kind if node.kind in ("over", "function") else "factor"
        return _Node(kind, f"<{name}>{node.drawn}{rows}</{name}>")

    def script(self, above: bool = False) -> str:
        token = self.take()
        if not token.glued:
            raise NotUnderstoodError("a script with a space before it")
        if token.text in ("{", "("):
            closing = _FENCES[token.text]
            inside = _row(self.sequence((closing,)), False)
            if self.take().text != closing or not inside:
                raise NotUnderstoodError("an open script")
            return inside
        drawn = ""
        if token.text == "-" and above:
            drawn, token = '<mo form="prefix">−</mo>', self.take()
        drawn += self.index(token)
        while not above and len(self.left) > 1 and self.next_is(",", glued=True) and self.left[1].glued:
            if self.left[1].kind not in ("letter", "number") and self.left[1].text not in GREEK:
                raise NotUnderstoodError("a list of scripts")
            self.take()
            drawn += '<mo separator="true">,</mo>' + self.index(self.take())
            if self.next_is("_", "^", "(", glued=True):
                raise NotUnderstoodError("a list of scripts, or of terms")
        return drawn

    def index(self, token: _Token) -> str:
        text = token.text
        if token.kind == "number":
            return f"<mn>{text}</mn>"
        if token.kind == "letter" or text in GREEK:
            drawn = f"<mi>{GREEK.get(text, text)}</mi>"
            if self.left and self.left[0].kind == "number" and self.left[0].glued:
                drawn = f"<msub>{drawn}<mn>{self.take().text}</mn></msub>"
            return drawn
        if token.kind == "word" and text.isalpha():
            upright = len(text) > 3 or text in _SHORT or text in ("all", "new", "old", "out", "eff")
            return f'<mi mathvariant="{"normal" if upright else "italic"}">{text}</mi>'
        raise NotUnderstoodError(text)


_FACTORS = ("factor", "number")


def _row(nodes: list[_Node], display: bool) -> str:
    nodes = _fractions(_articles(nodes), display)
    drawn = ""
    for place, node in enumerate(nodes):
        before = nodes[place - 1] if place else None
        if node.kind == "text":
            if before is not None and before.kind == "text":
                continue
            words = [node.drawn]
            for after in nodes[place + 1 :]:
                if after.kind != "text":
                    break
                words.append(after.drawn)
            after = nodes[place + len(words)] if place + len(words) < len(nodes) else None
            left = _SPACE if before is not None and before.kind not in ("operator", "separator") else ""
            right = _SPACE if after is not None and after.kind not in ("operator", "separator") else ""
            drawn += f"<mtext>{left}{' '.join(words)}{right}</mtext>"
            continue
        names = node.kind == "function" or _begins_upright(node)
        if before is not None and before.kind in (*_FACTORS, "function", "over"):
            if node.kind == before.kind == "number":
                raise NotUnderstoodError("two numbers side by side")
            if names or before.kind in ("function", "over") or _begins_upright(before):
                drawn += '<mspace width="0.17em"></mspace>'
        drawn += node.drawn
    return drawn


def _begins_upright(node: _Node) -> bool:
    return bool(re.match(r"(<m(?!text|i|n|o)\w+>)*<mtext class", node.drawn))


def _articles(nodes: list[_Node]) -> list[_Node]:
    """With "a" before a word as a word."""
    after = [*nodes[1:], None][: len(nodes)]
    return [
        _Node("text", "a", node.glued)
        if node.drawn == "<mi>a</mi>" and follows is not None and follows.kind == "text"
        else node
        for node, follows in zip(nodes, after, strict=True)
    ]


def _fractions(nodes: list[_Node], display: bool) -> list[_Node]:
    """With each slash and what it divides as one; refused where a reader could take it in two ways."""
    made: list[_Node] = []
    left = list(nodes)
    while left:
        node = left.pop(0)
        if node.kind != "slash":
            made.append(node)
            continue
        if len(left) == 1 and left[0].kind == "text":
            left[0] = _Node("factor", f"<mtext>{left[0].drawn}</mtext>", left[0].glued)
        if not left or left[0].kind not in _FACTORS or not made or made[-1].kind not in _FACTORS:
            raise NotUnderstoodError("a slash without what it divides")
        below = left.pop(0)
        tight = node.glued and below.glued
        if left and (left[0].kind == "slash" or (left[0].kind in _FACTORS and (left[0].glued or not tight))):
            raise NotUnderstoodError("more than one thing behind a slash")
        if not display and left and left[0].kind in (*_FACTORS, "function", "over"):
            raise NotUnderstoodError("a product behind a slash")
        above = [made.pop()]
        while not tight and made and made[-1].kind in _FACTORS:
            above.insert(0, made.pop())
        if made and made[-1].kind == "function":
            raise NotUnderstoodError("a function without parentheses, over something")
        if display:
            upper, lower = (each[0].inside if len(each) == 1 else "" for each in (above, [below]))
            upper, lower = upper or _row(above, display), lower or below.drawn
            drawn = f"<mfrac><mrow>{upper}</mrow><mrow>{lower}</mrow></mfrac>"
        else:
            drawn = f"<mrow>{_row(above, display)}<mo lspace='0' rspace='0'>/</mo>{below.drawn}</mrow>".replace(
                "'", '"'
            )
        made.append(_Node("factor", drawn, above[0].glued))
    return made


def _parts(line: str) -> tuple[list[str], str]:
    """Formulas and remarks of a line, and its number; what an operator holds together is one."""
    parts = re.split(r" {2,}", line.strip())
    number = parts.pop() if len(parts) > 1 and _NUMBER_OF_EQUATION.fullmatch(parts[-1]) else ""
    joined: list[str] = []
    for part in parts:
        begins = re.match(r"(:=|<-|<=|>=|!=|[-+*/=<>~])(?!\S)", part)
        ends = joined and re.search(r"(?<!\S)(:=|<-|<=|>=|!=|[-+*/=<>~])$", joined[-1])
        if joined and (begins or ends or joined[-1].endswith(":")):
            joined[-1] += f" {part}"
        else:
            joined.append(part)
    return joined, number


def _is_equation(part: str) -> bool:
    try:
        tokens = list(_tokens(part))
        formula(part, display=True)
    except NotUnderstoodError:
        return False
    depth = 0
    if tokens[0].text in ("min", "max"):
        return True
    for token in tokens:  # a relation that is not one of an index
        depth += (token.text in ("(", "[", "{")) - (token.text in (")", "]", "}"))
        if token.text in RELATIONS and not depth:
            return True
    return False


def _line(line: str) -> str | None:
    parts, number = _parts(line)
    if not _is_equation(parts[0]):
        return None
    known = symbols(line)
    drawn = ""
    for part in parts:
        if _is_equation(part):
            source = escape(_entities(part), quote=False).replace("&amp;#", "&#")
            inside = formula(part, display=True).replace('<math displaystyle="true">', "").removesuffix("</math>")
            drawn += (
                f'<math displaystyle="true"><semantics><mrow>{inside}</mrow>'
                f'<annotation encoding="text/plain">{source}</annotation></semantics></math>'
            )
        else:
            pieces = in_prose(part, known)
            drawn += (
                "<span>" + "".join(each or _entities(escape(text, quote=False)) for text, each in pieces) + "</span>"
            )
    return drawn + (f"<b>{_entities(number)}</b>" if number else "")


def _entities(text: str) -> str:
    """Without a character that Markdown would take for its own."""
    return re.sub(r"[\\`*_\[\]{}]", lambda found: f"&#{ord(found[0])};", text)


def _candidates(text: str) -> list[tuple[int, int]]:
    """Where formulas could be: runs of tokens that prose does not have, between commas."""
    found: list[tuple[int, int]] = []
    start: int | None = None
    place, end = 0, 0
    open_: list[bool] = []  # brackets, and whether they belong to a function
    while place <= len(text):
        token = _TOKEN.match(text, place) if place < len(text) else None
        if token is None or _parts_formulas(token, open_):
            if start is not None:
                found.append((start, end))
            start, open_ = None, []
            place = token.end() if token else place + 1
            continue
        if token.lastgroup != "space":
            if token[0] in ("(", "[", "{"):
                open_.append(token[0] == "(" and end == place and text[place - 1 : place].isalnum())
            elif token[0] in (")", "]", "}") and open_:
                open_.pop()
            start = place if start is None else start
            end = token.end()
        place = token.end()
    return [each for span in found for each in _balanced(text, *span)]


def _parts_formulas(token: re.Match[str], open_: list[bool]) -> bool:
    """Whether it is a word of the prose, or a comma of it."""
    text, place = token.string, token.end()
    before, after = text[token.start() - 1 : token.start()], text[place : place + 1]
    if token.lastgroup == "word":
        named = token[0] in GREEK or token[0] in _FUNCTIONS or token[0] in _NAMES
        return not (named or after in ("(", "_") or before in ("_", "^") or (open_ and open_[0]))
    return token[0] in (",", ";") and not open_ and (before.isspace() or after.isspace() or not after)


def _balanced(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """A run without the brackets, operators and dashes at its ends that belong to the prose; cut where a bracket of
    the prose opens or closes."""
    open_at: list[int] = []
    cuts: list[int] = []
    for place in range(start, end):
        if text[place] in "([{":
            open_at.append(place)
        elif text[place] in ")]}":
            if open_at:
                open_at.pop()
            else:
                cuts.append(place)
    cuts = sorted({*cuts, *open_at})
    for left, right in pairwise([start - 1, *cuts, end]):
        inner = text[left + 1 : right]
        kept = inner.strip().lstrip("*/=<>;, ").rstrip("+-*/=<>;,~ ")
        if kept:
            begin = text.index(kept, left + 1)
            yield begin, begin + len(kept)


_BARE = re.compile(r"[A-Za-z]\d?'?")
_MARKED = re.compile(r"[_^]|\|\||sqrt\(|(?<!\S)(:=|<-|<=|>=|=|<|>|~|/)(?!\S)")
_ARTICLE = re.compile(r"([aA])\s+(?!:=|[-+=<>*/)…])")


def _drawn_in_prose(text: str, start: int, end: int, known: set[str]) -> tuple[int, str] | None:
    """Where it begins, and its MathML."""
    begins = not text[:start].strip() or text[:start].rstrip()[-1] in ".:;!?"
    article = _ARTICLE.match(text, start, end)
    if article and (begins or article[1] == "a"):
        start = article.end()
    piece, before, after = text[start:end], text[:start], text[end:]
    if re.search(r"[\w.\-/'’§:]\Z", before) or re.match(r"[\w\-/'’^(]|[.:]\w", after):
        return None  # a part of a word
    if re.search(r"'s\b", piece) or (re.search(r"\brows?\s\Z", before) and piece.isupper()):
        return None  # what is of it, or a row of a table
    if re.fullmatch(r"[(\[][^()\[\]]*[)\]]", piece) and not re.search(r"[_^=<]", piece):
        return None  # a remark in parentheses, or a shape
    try:
        tokens = list(_tokens(piece))
        drawn = f'<span class="formula">{formula(piece)}</span>'
    except NotUnderstoodError:
        return None
    if any(_is_prose(token) and after.text == "_" and after.glued for token, after in pairwise(tokens)):
        return None  # a name of a program
    names = [token.text for token in tokens if token.kind == "letter" or token.text in GREEK]
    if piece in GREEK:
        is_one = piece in known or piece.islower()  # a capital may begin a sentence
    elif _BARE.fullmatch(piece):
        is_one = (
            piece[0] in known and piece != "a" and not (piece == "A" and begins) and not re.search(r"\d\s\Z", before)
        )
    elif _MARKED.search(piece):
        is_one = bool(names) or "=" in piece or "sqrt" in piece
    elif re.fullmatch(r"\d+[a-z]", piece):
        is_one = piece[-1] in known and not re.search(r"\b(Figs?|Eqs?|Table|and)\.?\s\Z", before)
    else:
        is_one = bool(names) and (any(name in GREEK for name in names) or set(names) <= known)
    return (start, drawn) if is_one else None


def _is_prose(token: _Token) -> bool:
    return token.kind == "word" and not (token.text in GREEK or token.text in _FUNCTIONS or token.text in _NAMES)
