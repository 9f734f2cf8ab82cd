"""Writes docs/reference/ from the code and from a migrated database: `make docs-reference`.

Settings and policies come from the docstrings of their fields, commands from their help, tables and views from the
comments in the database, errors from their classes. tests/integration/test_docs_reference.py makes the pages again and
compares.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from sqlalchemy import Connection, text

from docs.fields import Described, allowed, default, described_fields, is_model
from pipeline import errors
from pipeline.cli.app import app
from pipeline.db.grants import GRANTS
from pipeline.policies import parse_policy, policy_names
from pipeline.policies.exits import exit_names, exit_type
from pipeline.policies.guards import LoopGuard
from pipeline.settings import Settings

REFERENCE = Path(__file__).parent / "reference"
MARK = "<!-- Made by docs/generate.py. Change the code, not this page. -->"

RELATIONS_SQL = """
    SELECT c.oid, c.relname AS name, obj_description(c.oid, 'pg_class') AS comment FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = :kind AND c.relname <> 'alembic_version'
    ORDER BY c.relname"""
COLUMNS_SQL = """
    SELECT attname AS name, format_type(atttypid, atttypmod) AS type, attnotnull AS not_null,
           col_description(attrelid, attnum) AS comment
    FROM pg_attribute WHERE attrelid = :oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum"""


def main() -> None:
    """Write every page, with the comments of a fresh database."""
    with migrated_database() as connection:
        written = pages(connection)
    for name, page in written.items():
        (REFERENCE / name).write_text(page)
        print(f"wrote {REFERENCE / name}")


def pages(connection: Connection) -> Mapping[str, str]:
    """Every page by its file's name."""
    return {
        "commands.md": commands_page(),
        "errors.md": errors_page(),
        "policies.md": policies_page(),
        "rights.md": rights_page(),
        "settings.md": settings_page(),
        "tables.md": relations_page(connection, "r", "Tables", TABLES_INTRODUCTION),
        "views.md": relations_page(connection, "v", "Views", VIEWS_INTRODUCTION),
    }


# Markdown


def page(title: str, *parts: str) -> str:
    return "\n\n".join([MARK, f"# {title}", *(part.strip("\n") for part in parts)]) + "\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(cell(value) for value in row)} |" for row in rows]
    return "\n".join(lines)


def cell(value: str) -> str:
    """A value on one line, without what would end a table's cell."""
    return " ".join(plain(value).split()).replace("|", "\\|")


def plain(docstring: str) -> str:
    """A docstring's double backticks are Markdown's single ones."""
    return docstring.replace("``", "`")


# Settings

SETTINGS_INTRODUCTION = """\
Each process reads its settings once, from environment variables. `specthink … --help` lists the options that set some
of them. A wrong value stops the process with the variable's name and what it should be; so does a variable that was
meant for a setting and has another name."""


def settings_page() -> str:
    return page("Settings", SETTINGS_INTRODUCTION, *settings_parts(Settings, "SPECTHINK_", "General"))


def settings_parts(model: Any, prefix: str, title: str) -> Iterator[str]:
    """A part of the settings, then the parts inside it."""
    introduction = f"{plain(inspect.getdoc(model) or '')}\n\n" if model is not Settings else ""
    yield f"## {title}\n\n{introduction}{settings_table(model, prefix)}"
    for name, field, _ in described_fields(model):
        if is_model(field.annotation):
            inner = name.capitalize() if model is Settings else f"{title}: {name}"
            yield from settings_parts(field.annotation, f"{prefix}{name.upper()}__", inner)


def settings_table(model: Any, prefix: str) -> str:
    rows = [
        [f"`{prefix}{name.upper()}`", default(field), allowed(field.annotation, field.metadata), meaning(field, words)]
        for name, field, words in described_fields(model)
        if not is_model(field.annotation)
    ]
    return table(["variable", "default", "allowed", "meaning"], rows)


def meaning(field: FieldInfo, docstring: str) -> str:
    origin = f" Default from: {field.description}." if field.description else ""
    return docstring + origin


# Policies

POLICIES_INTRODUCTION = """\
Every number of every policy, with where its default comes from. `specthink clone JOB --set policy.n1=30` changes one.
"Paper" is arXiv 2504.12329 where nothing else is named, "code" its released code, and "ours" a choice made here.
[Policies](../policies/index.md) says what each policy does."""


def policies_page() -> str:
    parts: dict[str, type[BaseModel]] = {name: type(parse_policy(name)) for name in policy_names()}
    parts |= {f"exit: {name}": exit_type(name) for name in exit_names()} | {"guard: loops": LoopGuard}
    return page("Policies and their numbers", POLICIES_INTRODUCTION, *(numbers_of(*part) for part in parts.items()))


def numbers_of(title: str, spec: type[BaseModel]) -> str:
    """A section on one policy, exit or guard."""
    rows = [
        [
            f"`{field.name}`",
            policy_default(field),
            allowed(field.field.annotation, field.field.metadata),
            field.docstring,
        ]
        for field in described_fields(spec)
        if field.name not in ("name", "preset")
    ]
    numbers = table(["field", "default", "allowed", "meaning and origin"], rows) if rows else "It has no numbers."
    return f"## {title}\n\n{plain(inspect.getdoc(spec) or '')}\n\n{numbers}"


def policy_default(described: Described) -> str:
    value = described.field.default
    if isinstance(value, BaseModel):
        return "; ".join(f"{name}: {', '.join(words)}" for name, words in value.model_dump().items())
    return default(described.field)


# Commands


def commands_page() -> str:
    command: Any = typer.main.get_command(app)
    context = command.make_context("specthink", [], resilient_parsing=True)
    parts = [plain(command.help), parameters(command)]
    parts += [part for name in command.list_commands(context) for part in command_parts(command, context, name)]
    return page("Commands", *parts)


def command_parts(group: Any, parent: Any, name: str) -> Iterator[str]:
    command = group.get_command(parent, name)
    context = command.make_context(f"{parent.command_path} {name}", [], parent=None, resilient_parsing=True)
    if hasattr(command, "list_commands"):
        for inner in command.list_commands(context):
            yield from command_parts(command, context, inner)
        return
    usage = " ".join([context.info_name, *usage_pieces(command), "[OPTIONS]"])
    yield f"## {context.info_name}\n\n`{usage}`\n\n{plain(inspect.cleandoc(command.help or ''))}"
    yield parameters(command)


def usage_pieces(command: Any) -> Iterator[str]:
    """Its arguments, in brackets where one may be left out."""
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            name = names_of(parameter).strip("`") + ("..." if parameter.nargs == -1 else "")
            yield name if parameter.required else f"[{name}]"


def parameters(command: Any) -> str:
    rows = [
        [names_of(parameter), shown_default(parameter), parameter.help or ""]
        for parameter in command.params
        if parameter.name != "help" and not getattr(parameter, "hidden", False)
    ]
    return table(["option", "default", "meaning"], rows)


def names_of(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{(parameter.metavar or parameter.name.upper()).strip('[]').removesuffix('...')}`"
    return ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts] if name.startswith("--"))


def shown_default(parameter: Any) -> str:
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    value = parameter.default
    if value is None or value is False or callable(value) or type(value).__name__ == "Sentinel":
        return "required" if parameter.required else ""
    return "on" if value is True else f"`{value}`"


# Errors

ERRORS_INTRODUCTION = """\
Every error that specthink raises on purpose. The command line prints its message and nothing else, and ends with the
exit code. [Troubleshooting](../troubleshooting.md) goes from a message to its remedy."""


def errors_page() -> str:
    tree = (errors.__doc__ or "").partition("\n\n")[2].strip()
    rows = [
        [f"`{name}`", str(kind.exit_code), (inspect.getdoc(kind) or "").partition("\n\n")[0]]
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.PipelineError)
    ]
    return page("Errors", ERRORS_INTRODUCTION, f"```text\n{tree}\n```", table(["error", "exit code", "meaning"], rows))


# Tables and views

TABLES_INTRODUCTION = """\
The tables hold every fact once. They may change from version to version; the [views](views.md) are the stable face.
"Not null" stands in the third column. A column without a meaning says it by its name."""
VIEWS_INTRODUCTION = """\
The views are the stable face of the database: they answer on whatever is finished at that moment, and their columns
stay. "Right" means a score of at least 0.5. The [SQL cookbook](../sql-cookbook.md) asks them thirty-one questions."""


def relations_page(connection: Connection, kind: str, title: str, introduction: str) -> str:
    parts = []
    for relation in connection.execute(text(RELATIONS_SQL), {"kind": kind}):
        columns = connection.execute(text(COLUMNS_SQL), {"oid": relation.oid})
        rows = [
            [
                f"`{column.name}`",
                column.type,
                *(["yes" if column.not_null else ""] * (kind == "r")),
                column.comment or "",
            ]
            for column in columns
        ]
        names = ["column", "type", *(["not null"] * (kind == "r")), "meaning"]
        parts.append(f"## {relation.name}\n\n{plain(relation.comment or '')}\n\n{table(names, rows)}")
    return page(title, introduction, *parts)


RIGHTS_INTRODUCTION = """What each login may do in the database: nothing but this. `specthink migrate` grants it anew.
Of the workers' logins each right is one that a statement needs: a test takes them away one by one. Reading a view needs
no right on the tables below it. The functions check what they are asked for, and have the schema owner's rights."""


def rights_page() -> str:
    parts = []
    for role, granted in GRANTS.items():
        rows = [[f"`{name}`", privileges] for name, privileges in granted.items()]
        parts.append(f"## {role.value}\n\n{table(['table, view or function', 'may'], rows)}")
    return page("Rights of the logins", RIGHTS_INTRODUCTION, *parts)


@contextmanager
def migrated_database() -> Iterator[Connection]:
    """A connection to a fresh, migrated database, which is gone afterwards."""
    from pipeline.db.migrate import upgrade
    from pipeline.db.session import open_database
    from pipeline.embedded import start, stop

    with tempfile.TemporaryDirectory(prefix="specthink-docs-") as folder:
        state_dir = Path(folder) / "state"
        db_engine = open_database(start(state_dir, die_with_parent=True).connections.database_url)
        try:
            upgrade(db_engine)
            with db_engine.connect() as connection:
                yield connection
        finally:
            db_engine.dispose()
            stop(state_dir)


if __name__ == "__main__":
    main()
