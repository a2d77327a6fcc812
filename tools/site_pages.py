"""Pages of the site that follow from the code, and links that leave docs/: a hook of mkdocs, see mkdocs.yml.

The README is the first page. A link to a file that is not part of the site becomes the file's path as text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import normpath
from typing import Any

import typer
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
    "lorica.run.check",
    "lorica.learner.load",
    "lorica.learner.Learner",
    "lorica.predictor.Predictor",
    "lorica.predictor.Answer",
    "lorica.versions.Version",
    "lorica.results.Result",
    "lorica.results.Metrics",
    "lorica.config.read_recipe",
    "lorica.config.Recipe",
    "lorica.data.sources.arrays.arrays",
    "lorica.data.sources.image_folder.image_folder",
    "lorica.data.sources.base.Source",
    "lorica.methods.base.Method",
    "lorica.methods.linear_head.LinearHeadMethod",
    "lorica.methods.config.MethodConfig",
    "lorica.backbones.encoder.Encoder",
    "lorica.types.Task",
    "lorica.types.Batch",
    "lorica.errors.LoricaError",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in docs/."""
    made = {own: (ROOT / name).read_text() for name, own in _OUTSIDE.items()}
    made |= {
        "reference/methods.md": _methods(),
        "reference/keys.md": _keys(),
        "reference/commands.md": _commands(),
        "reference/recipes.md": _recipes(),
        "reference/api.md": "# Python\n\n" + "\n\n".join(f"::: {name}" for name in _API) + "\n",
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
    aligned in columns become code, as indented ones are. In prose, signs of formulas stand for themselves.
    """
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
            new = kind if kind in ("item", "code") else "code"
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
        text += ("" if not number else "\n" if in_list else "\n\n") + _block(kind, lines)
    return text


def _block(kind: str, lines: list[str]) -> str:
    if kind == "code":
        return "\n".join(lines).rstrip()
    if kind == "prose" and len(lines) > 1 and all(re.search(r"\S {2,}\S", line) or line[0] == " " for line in lines):
        return "\n".join(f"    {line.replace('`', '')}" for line in lines)  # in columns
    text = "\n".join(line.strip() for line in lines)
    if kind == "item":
        return "* " + _plain(text[2:]).replace("\n", "\n    ")
    return _plain(text)


def _plain(prose: str) -> str:
    """Prose in which nothing but code and pairs of stars around words is set otherwise than it stands."""
    parts = _KEPT.split(prose)
    parts[::2] = (re.sub(r"[\\_*\[\]]", r"\\\g<0>", part).replace("<", "&lt;") for part in parts[::2])
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
            parts.append(f"## {name}\n\n{(kind.__doc__ or '').splitlines()[0]}\n\n{_table(kind, name)}")
    plain = [name for name, field in Recipe.model_fields.items() if not _is_section(field.annotation)]
    parts.append(f"## others\n\n{_table(Recipe, '', plain)}")
    parts.append("## method\n\nEvery method has these, and its own.\n\n" + _table(MethodConfig, "method"))
    for name in method_names():
        own = [key for key in config_of(name).model_fields if key not in MethodConfig.model_fields]
        if own:
            parts.append(f"### {name}\n\n{method_descriptions()[name]}\n\n{_table(config_of(name), 'method', own)}")
    return "\n".join(parts)


def _is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _table(model: type[BaseModel], section: str, names: list[str] | None = None) -> str:
    lines = ["| key | default | what it says |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        if names is None or name in names:
            default = "" if field.default is PydanticUndefined else f"`{_shown(field.default)}`"
            key = f"{section}.{name}" if section else name
            lines.append(f"| `{key}` | {default} | {_cell(field.description or '')} |")
    return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    return (
        {None: "null", True: "true", False: "false"}.get(value, str(value))
        if value is None or isinstance(value, bool)
        else str(value)
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _commands() -> str:
    """What `--help` says of every command."""
    parts = ["# Commands\n"]
    for name, command in sorted(_each(typer.main.get_command(app), "lorica")):
        options = [each for each in command.params if each.name != "help"]
        usage = " ".join(_called(each) if _is_argument(each) else f"[{each.opts[0]}]" for each in options)
        parts.append(
            f"## {name}\n\n{_cell(command.help or '')}\n\n    {name} {usage}\n\n| argument | what it says |\n|---|---|"
        )
        for each in options:
            called = _called(each) if _is_argument(each) else ", ".join([*each.opts, *each.secondary_opts])
            parts.append(f"| `{called}` | {_cell(getattr(each, 'help', None) or '')} |")
        parts.append("")
    return "\n".join(parts)


def _each(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _each(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def _is_argument(parameter: Any) -> bool:
    return parameter.param_type_name == "argument"


def _called(parameter: Any) -> str:
    return parameter.metavar or parameter.name.upper()


def _recipes() -> str:
    lines = ["# Packaged recipes\n", "`lorica recipe NAME` prints one.\n", "| name | what it is |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{name}` | {_cell(text)} |" for name, text in packaged_recipes().items())]) + "\n"
