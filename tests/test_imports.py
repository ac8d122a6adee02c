"""What loads what: the package and its help are light, and imports run one way."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dlogp_ray"
HEAVY = {"torch", "ray", "transformers", "duckdb", "vl_convert"}

# A room may import itself and whatever stands on a lower level; rooms on one level don't import
# each other. demo stands above pipelines, for its walkthrough runs a job.
LEVELS = {
    "jobs": 10,
    "__main__": 9,
    "cli": 8,
    "demo": 7,
    "bench": 6,
    "pipelines": 6,
    "corpus": 5,
    "scoring": 5,
    "analysis": 5,
    "decoding": 5,
    "weights": 5,
    "policies": 4,
    "tables": 4,
    "store": 3,
    "config": 2,
    "events": 2,
    "errors": 1,
    "addresses": 0,
    "amounts": 0,
    "status": 0,
    "visible": 0,
}
MAY_IMPORT_RAY = {"pipelines", "jobs"}


def run(code: str, *arguments: str) -> str:
    """Standard output of ``code`` in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


REPORT = "import sys; print('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))"


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("import dlogp_ray", ()),
        ("import dlogp_ray.config", ()),
        ("import dlogp_ray.cli", ()),
        ("import dlogp_ray; dlogp_ray.ScoreConfig; dlogp_ray.open_run", ()),
        (
            "import dlogp_ray.cli as c\ntry: c.main()\nexcept SystemExit as e: assert not e.code",
            ("--help",),
        ),
        (
            "import dlogp_ray.cli as c\ntry: c.main()\nexcept SystemExit as e: assert not e.code",
            ("score", "--help"),
        ),
    ],
    ids=["package", "config", "cli", "names", "help", "score-help"],
)
def test_nothing_heavy_is_loaded(code: str, arguments: tuple[str, ...]) -> None:
    output = run(f"{code}\n{REPORT}", *arguments)
    if arguments:
        assert "Usage" in output
    loaded = set(output.rpartition("LOADED")[2].split())
    assert "dlogp_ray" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize(
    "module",
    ["score.stages", "reweight.reweight", "sparsity.sparsity", "run.make_run", "run.cost"],
)
def test_what_needs_no_policies_loads_no_torch(module: str) -> None:
    """Each process that reads or writes imports these: torch takes seconds and 300 MB."""
    loaded = set(
        run(f"import dlogp_ray.pipelines.{module}\n{REPORT}").rpartition("LOADED")[2].split()
    )
    assert not loaded & {"torch", "ray", "transformers"}


def test_every_public_name_is_found() -> None:
    code = (
        "import dlogp_ray\nfor name in dlogp_ray.__all__: print(getattr(dlogp_ray, name).__name__)"
    )
    classes = ["InterveneConfig", "InterveneResult", "ReweightConfig", "ReweightResult", "Run"]
    classes += ["ScoreConfig", "ScoreResult", "SparsityConfig", "SparsityResult"]
    functions = ["intervene", "load_logps", "load_weights", "open_run", "reweight", "score"]
    assert run(code).split() == [*classes, *functions, "shutdown", "sparsity"]


def modules() -> dict[str, Path]:
    """Dotted name -> file, of the package's modules and the job scripts."""
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "jobs").glob("*.py")]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
    }


def room(module: str) -> str:
    """The room of a module: corpus of ``dlogp_ray.corpus.rows``, jobs of ``jobs.score``."""
    parts = module.split(".")
    return parts[0] if parts[0] == "jobs" else ".".join(parts[1:2])


def imports(module: str, path: Path) -> set[str]:
    """Dotted names of all modules that ``path`` imports, at its top or inside its functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            # `from dlogp_ray.tables import schemas` imports the module schemas.
            name = str(node.module)
            found |= {f"{name}.{alias.name}" for alias in node.names}
    return found


def test_every_room_has_a_level() -> None:
    assert {room(module) for module in modules()} - {""} <= set(LEVELS)


@pytest.mark.parametrize("module", sorted(modules().keys() - {"dlogp_ray"}))
def test_imports_run_one_way(module: str) -> None:
    importer = room(module)
    for name in imports(module, modules()[module]):
        top, _, rest = name.partition(".")
        imported = rest.split(".")[0] if top == "dlogp_ray" else None
        if top == "ray":
            assert importer in MAY_IMPORT_RAY, f"{module} imports {name}"
        if imported in LEVELS and imported != importer:
            assert LEVELS[imported] < LEVELS[importer], f"{module} imports {name}"
            assert imported != "demo" or importer == "cli", f"{module} imports {name}"


def test_no_room_has_a_circle_inside() -> None:
    """Nor has the whole: what a module imports never comes to import it."""
    files = modules()

    def module(name: str) -> str | None:
        """Of an imported name: it, or the module that has it."""
        return next((one for one in (name, name.rpartition(".")[0]) if one in files), None)

    graph = {
        importer: {str(module(name)) for name in imports(importer, path) if module(name)}
        for importer, path in files.items()
        if importer != "dlogp_ray"  # which has its names from where they are, when asked
    }
    for importer, names in graph.items():
        names -= {importer, "dlogp_ray"}
    TopologicalSorter(graph).prepare()  # CycleError names the modules of a circle


def test_the_package_imports_its_rooms_for_type_checkers_only() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    guarded = {
        id(node)
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("dlogp_ray"):
            assert id(node) in guarded, ast.unparse(node)
