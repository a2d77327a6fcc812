"""Pages of the site that follow from the code, and links that leave docs/: a hook of mkdocs, see mkdocs.yml.

The README is the first page. A link to a file that is not part of the site becomes the file's path as text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from posixpath import normpath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from equations import equations, in_prose, symbols
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from lorica.cli import app
from lorica.config import Recipe, packaged_recipes
from lorica.methods import config_of, method_descriptions, method_names
from lorica.methods.config import MethodConfig

ROOT = Path(__file__).parents[1]
_OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_API = (
    "lorica.run.run",
    "lorica.check",
    "lorica.load",
    "lorica.Learner",
    "lorica.Predictor",
    "lorica.Answer",
    "lorica.Version",
    "lorica.Result",
    "lorica.results.Metrics",
    "lorica.read_recipe",
    "lorica.Recipe",
    "lorica.arrays",
    "lorica.image_folder",
    "lorica.texts",
    "lorica.Source",
    "lorica.Method",
    "lorica.methods.linear_head.LinearHeadMethod",
    "lorica.MethodConfig",
    "lorica.backbones.encoder.Encoder",
    "lorica.types.Task",
    "lorica.types.Batch",
    "lorica.LoricaError",
    "lorica.errors.RecipeError",
    "lorica.errors.DataError",
    "lorica.errors.BackboneError",
    "lorica.errors.CheckpointError",
    "lorica.errors.TrainingError",
    "lorica.errors.RegressionError",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in docs/."""
    made = {own: (ROOT / name).read_text() for name, own in _OUTSIDE.items()}
    made |= {
        "reference/methods.md": _methods(),
        "reference/keys.md": _keys(),
        "reference/commands.md": _commands(),
        "reference/recipes.md": _recipes(),
        "reference/api.md": _api(),
    }
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as the site needs them."""
    source = {own: name for name, own in _OUTSIDE.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    folder = Path(source).parent.as_posix()

    def linked(match: re.Match[str]) -> str:
        picture, text, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if "://" in target or not path:
            return match[0]
        place = normpath(f"{folder}/{path}")
        if not (ROOT / place).exists():
            return match[0]  # which mkdocs will not find either, and says so
        own = _OUTSIDE.get(place) or (place.removeprefix("docs/") if place.startswith("docs/") else None)
        if own is None or files.get_file_from_path(own) is None:
            told = place.startswith(text.strip("`").rstrip("/")) or place.endswith(f"/{text}")
            return f"`{place}`" if told else f"{text} (`{place}`)"
        here = page.file.src_uri.count("/")
        return f"{picture}[{text}]({'../' * here}{own}{hash_}{anchor})"

    return _LINK.sub(linked, markdown)


def _api() -> str:
    """By the names that one imports; the package's `run` is also the name of a module."""
    own = {"lorica.run.run": "\n    options:\n      heading: lorica.run\n      toc_label: run"}
    return "# Python\n\n" + "\n\n".join(f"::: {name}{own.get(name, '')}" for name in _API) + "\n"


def _methods() -> str:
    """The module docstring of every method's file: equations, numbers, deviations."""
    parts = ["# Methods, as their files state them\n"]
    first = ["sd_lora", "rolda"]  # what lorica is about; then by name
    files = sorted((ROOT / "lorica" / "methods").glob("*.py"))
    for file in sorted(files, key=lambda file: first.index(file.stem) if file.stem in first else len(first)):
        tree = ast.parse(file.read_text())
        text = ast.get_docstring(tree)
        own = [node for node in tree.body if isinstance(node, ast.ClassDef) and _name_of(node) in method_names()]
        if own and text:
            title = ", ".join(f"`{_name_of(node)}`" for node in own)
            parts.append(f"## {title}\n\n`lorica/methods/{file.name}`\n\n{as_markdown(text)}\n")
    return "\n".join(parts)


_BULLET = re.compile(r" {0,3}[*-] ")
_SETTING = re.compile(r"`\w+: \w+`: ")  # what a paragraph is about
_KEPT = re.compile(r"(`+[^`]+`+|\*\*(?=\S)[^*]+(?<=\S)\*\*|(?<!\w)\*(?=\w)[^*]+(?<=\w)\*(?!\w))")


def as_markdown(docstring: str) -> str:
    """A docstring of a module, which is laid out to be read as it stands, as Markdown that shows the same.

    Lists get the blank line before them that Markdown wants, and lines of an item go on within it. Lines that are
    aligned in columns become code, as indented ones are, unless these are equations. In prose, what is not understood
    as a formula stands as it is, its signs too.
    """
    known = symbols(docstring)
    blocks: list[tuple[str, list[str]]] = []
    kind = ""
    for line in docstring.splitlines():
        if not line.strip():
            kind = "code" if kind == "code" else ""  # blank lines within code stay
            if kind:
                blocks[-1][1].append("")
            continue
        if _BULLET.match(line):
            new = "item"
        elif line.startswith("    "):
            new = kind or "code"  # what goes on without a blank line goes on
        elif line.startswith(" ") and kind:
            new = kind
        else:
            new = "prose" if kind in ("", "code", "item") else kind
        if new != kind or _BULLET.match(line) or _SETTING.match(line):
            blocks.append((new, []))
            kind = new
        blocks[-1][1].append(line)
    text = ""
    for number, (kind, lines) in enumerate(blocks):
        in_list = kind == "item" and number and blocks[number - 1][0] == "item"
        text += ("" if not number else "\n" if in_list else "\n\n") + _block(kind, lines, known)
    return text


def _block(kind: str, lines: list[str], known: set[str]) -> str:
    """`known`: letters that are symbols wherever they stand alone."""
    if kind == "code":
        paragraphs = [each.splitlines() for each in re.split(r"\n(?:\s*\n)+", "\n".join(lines).rstrip())]
        return "\n\n".join(equations(each) or "\n".join(each) for each in paragraphs)
    if kind == "prose" and len(lines) > 1 and all(re.search(r"\S {2,}\S", line) or line[0] == " " for line in lines):
        return "\n".join(f"    {_in_columns(line)}" for line in lines)
    text = "\n".join(line.strip() for line in lines)
    if kind == "item":
        return "* " + _plain(text[2:], known).replace("\n", "\n    ")
    return _plain(text, known)


def _in_columns(line: str) -> str:
    """Without backquotes, which code shows as they are; columns keep their places."""
    head, gap, rest = re.match(r"(\s*\S+(?: \S+)*)( {2,}|$)(.*)", line).groups()  # type: ignore[union-attr]
    return (head.replace("`", "") + gap + " " * head.count("`") * bool(rest) + rest.replace("`", "")).rstrip()


def _plain(prose: str, known: set[str]) -> str:
    """Prose in which nothing but formulas, code and pairs of stars around words is set otherwise than it stands."""
    parts = _KEPT.split(prose)
    parts[::2] = (
        "".join(
            drawn or re.sub(r"[\\_*\[\]]", r"\\\g<0>", text).replace("<", "&lt;")
            for text, drawn in in_prose(part, known)
        )
        for part in parts[::2]
    )
    return "".join(parts)


def _name_of(node: ast.ClassDef) -> str | None:
    for line in node.body:
        if isinstance(line, ast.Assign) and getattr(line.targets[0], "id", None) == "name":
            return ast.literal_eval(line.value)
    return None


def _keys() -> str:
    parts = ["# Keys of a recipe\n\nAny of them can be given behind `lorica run RECIPE`, as `section.key=value`.\n"]
    for name, field in Recipe.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and name != "method":
            parts.append(f"## {name}\n\n{_SECTIONS.get(name) or _first_line(kind)}\n\n{_table(kind, name)}")
    plain = [name for name, field in Recipe.model_fields.items() if not _is_section(field.annotation)]
    parts.append(f"## others\n\n{_table(Recipe, '', plain)}")
    parts.append("## method\n\nEvery method has these, and its own.\n\n" + _table(MethodConfig, "method"))
    for name in method_names():
        own = [key for key in config_of(name).model_fields if key not in MethodConfig.model_fields]
        if own:
            parts.append(f"### {name}\n\n{method_descriptions()[name]}\n\n{_table(config_of(name), 'method', own)}")
    return "\n".join(parts)


_SECTIONS = {
    "fit": "How each task is trained. Where a recipe says nothing else, this is what the SD-LoRA paper states for all "
    "methods: Adam at a rate of 0.008, batches of 128, 20 epochs a task. A method may have better defaults of its own."
}


def _first_line(kind: type[BaseModel]) -> str:
    return (kind.__doc__ or "").splitlines()[0]


def _is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _table(model: type[BaseModel], section: str, names: list[str] | None = None) -> str:
    lines = ["| key | allowed | default | what it says |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if names is None or name in names:
            default = "" if field.default is PydanticUndefined else f"`{_shown(field.default)}`"
            key = f"{section}.{name}" if section else name
            allowed = _cell(_allowed(field.annotation, field.metadata))
            lines.append(f"| `{key}` | {allowed} | {default} | {_cell(field.description or '')} |")
    return "\n".join(lines) + "\n"


_WORDS = {int: "integer", float: "number", str: "text", bool: "`true`, `false`", NoneType: "`null`", Path: "path"}
_BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}", "min_length": "not empty"}


def _allowed(kind: Any, metadata: Iterable[object] = ()) -> str:
    """Type, choices and bounds of a field, in words."""
    bounds = [
        said.format(f"{value:g}" if value < 1e6 else f"2^{int(value).bit_length() - 1}")
        for each in metadata
        for key, said in _BOUNDS.items()
        if (value := getattr(each, key, None)) is not None
    ]
    types = [each for each in get_args(kind) if each is not NoneType] if _is_union(kind) else [kind]
    said = " or ".join(_type(each) for each in types)
    none = " or `null`" if _is_union(kind) and NoneType in get_args(kind) else ""
    return ", ".join([said, *bounds]) + ("," if bounds and none else "") + none


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType)


def _type(kind: Any) -> str:
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _allowed(inside[0], inside[1:])
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in inside)
    if origin in (tuple, list):
        of = inside[0] if get_origin(inside[0]) is not Annotated else get_args(inside[0])[0]
        bounds = _type(inside[0]).removeprefix(_WORDS[of])
        number = "" if origin is list or inside[-1] is Ellipsis else f"{len(inside)} "
        return f"list of {number}{_WORDS[of]}s{bounds}"
    return _WORDS[kind]


def _shown(value: object) -> str:
    """As a recipe has it."""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_shown(each) for each in value)}]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _commands() -> str:
    """What `--help` says of every command; what may be left out stands in brackets."""
    parts = ["# Commands\n\nWhat stands in brackets can be left out.\n"]
    for name, command in sorted(_each(typer.main.get_command(app), "lorica")):
        given = [each for each in command.params if each.name != "help"]
        usage = " ".join(_used(each) for each in given)
        parts.append(f"## {name}\n\n{_cell(command.help or '')}\n\n    {name} {usage}\n")
        rows = [
            (
                f"`{_called(each)}`",
                _cell(", ".join(f"`{choice}`" for choice in _choices(each))),
                "" if _is_argument(each) else _preset(each.default),
                _cell(getattr(each, "help", None) or ""),
            )
            for each in given
        ]
        heads = ("argument", "allowed", "default", "what it says")
        filled = [column for column in range(len(heads)) if any(row[column] for row in rows)]
        for row in (heads, ["---"] * len(heads), *rows):
            parts.append(f"| {' | '.join(row[column] for column in filled)} |")
        parts.append("")
    return "\n".join(parts)


def _used(parameter: Any) -> str:
    called = _called(parameter, alone=True)
    if called.startswith("[") or parameter.required:
        return called
    return f"[{called}]" + ("…" if getattr(parameter, "multiple", False) else "")


def _called(parameter: Any, alone: bool = False) -> str:
    """An argument by its name; an option with what is behind it, and with its other names unless it stands alone."""
    value = parameter.metavar or _value(parameter)
    if _is_argument(parameter):
        return value + ("…" if parameter.nargs < 0 and "…" not in value else "")
    names = parameter.opts[0] if alone else ", ".join([*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} {value}"


def _value(parameter: Any) -> str:
    """A word for what is given, where the command has none."""
    if _is_argument(parameter):
        return parameter.name.upper()
    kind, told = str(parameter.type_descriptor.annotation), parameter.help or ""
    if "Path" in kind:
        found = re.search(r"\b(folder|file|images)\b", told)
        return found[0].upper() if found else "PATH"
    if _choices(parameter):
        return parameter.opts[-1].lstrip("-").upper()
    return "N" if "int" in kind else "NUMBER" if "float" in kind else parameter.opts[0].lstrip("-").upper()


def _choices(parameter: Any) -> list[str]:
    kind = parameter.type_descriptor.annotation
    return [each.value for each in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []


def _preset(value: object) -> str:
    if value is None or value is False:
        return ""
    return f"`{value.value if isinstance(value, Enum) else value}`"


def _each(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _each(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def _is_argument(parameter: Any) -> bool:
    return parameter.param_type_name == "argument"


def _recipes() -> str:
    lines = ["# Packaged recipes\n", "`lorica recipe NAME` prints one.\n", "| name | what it is |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{name}` | {_cell(text)} |" for name, text in packaged_recipes().items())]) + "\n"
