"""The package's modules, each with its own first line, as ``dlogp_ray/README.md`` has them.

python tests/house.py     # writes it there
"""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "dlogp_ray"
README = PACKAGE / "README.md"
BEGIN, END = "<!-- modules: python tests/house.py -->\n", "<!-- end -->\n"


def tree() -> str:
    """A room a heading, a module a line."""
    rooms: dict[Path, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        rooms.setdefault(path.parent, []).append(path)
    lines = []
    for folder in sorted(rooms):
        name = "/".join(["dlogp_ray", *folder.relative_to(PACKAGE).parts])
        lines.append(f"\n**{name}/**: {first_line(folder / '__init__.py')}\n")
        lines += [
            f"- `{path.name}`: {first_line(path)}"
            for path in rooms[folder]
            if path.name != "__init__.py"
        ]
    return "\n".join(lines).lstrip("\n") + "\n"


def first_line(path: Path) -> str:
    """Of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, f"{path} does not say what it is"
    return docstring.partition("\n")[0]


def parts() -> tuple[str, str, str]:
    """Of the README: before the tree, the tree, and after it."""
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    inside, _, after = rest.partition(END)
    return before, inside, after


if __name__ == "__main__":
    above, _, below = parts()
    README.write_text(above + BEGIN + "\n" + tree() + "\n" + END + below, encoding="utf-8")
