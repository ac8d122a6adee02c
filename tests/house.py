"""What READMEs say that the package says itself: its modules, each with its first line; formats.

python tests/house.py     # writes them there
"""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "dlogp_ray"
README = PACKAGE / "README.md"
BEGIN, END = "<!-- modules: python tests/house.py -->\n", "<!-- end -->\n"
CORPUS = PACKAGE / "corpus" / "README.md"
BEGIN_FORMATS = "<!-- formats: python tests/house.py -->\n"


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


def formats() -> str:
    """A format a line."""
    from dlogp_ray.corpus.formats import FORMATS

    rows = [
        f"| `{name}` | {form.what} | {form.holds}{'; lossy' if form.lossy else ''} |"
        for name, form in FORMATS.items()
    ]
    return "\n".join(["| `format` | of | what is there |", "|---|---|---|", *rows]) + "\n"


def parts(page: Path = README, begin: str = BEGIN) -> tuple[str, str, str]:
    """Of a page: before what is written here, that, and after it."""
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    inside, _, after = rest.partition(END)
    return before, inside, after


if __name__ == "__main__":
    for page, begin, content in ((README, BEGIN, tree()), (CORPUS, BEGIN_FORMATS, formats())):
        above, _, below = parts(page, begin)
        page.write_text(above + begin + "\n" + content + "\n" + END + below, encoding="utf-8")
