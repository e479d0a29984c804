"""The house's own rules: layers, sizes, and what a function may ask for. Run: python -m pytest tests/test_house.py"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(ROOT.glob("*.py"))
MODULES = sorted(file for folder in ("data", "models", "utils") for file in (ROOT / folder).glob("*.py"))
PROGRAM = SCRIPTS + MODULES + sorted((ROOT / "experiments").glob("*.py"))
SHARED = {f"utils/{name}.py" for name in ("evaluation", "release", "carriers", "labelling")}  # may use both
SCRIPT_LINES, UTILS_MODULES, FUNCTION_LINES, LOOP_LINES, PARAMETERS = 360, 17, 70, 90, 7
README_LINES, README_BYTES = 200, 12_288


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def imported_folders(file: Path) -> set[str]:
    """Folders of this repository that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found & {"data", "models", "utils", "experiments", "tests", *(script.stem for script in SCRIPTS)}


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_layers_hold(file):
    allowed = {file.parent.name} | ({"data", "models"} if name_of(file) in SHARED else set())
    assert imported_folders(file) <= allowed


def test_a_script_can_be_read_in_one_go_and_utils_has_few_modules():
    long = {name_of(file): lines for file in SCRIPTS if (lines := len(file.read_text().splitlines())) > SCRIPT_LINES}
    assert not long
    utils = [file for file in MODULES if file.parent.name == "utils" and file.name != "__init__.py"]
    assert len(utils) <= UTILS_MODULES


def functions(file: Path):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node


def is_training_loop(function: ast.FunctionDef) -> bool:
    """Whether it has a loop and calls .backward(), in the loop or in a step that the loop calls."""
    nodes = list(ast.walk(function))
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    loops = any(isinstance(node, ast.For | ast.While) for node in nodes)
    return loops and any(isinstance(call.func, ast.Attribute) and call.func.attr == "backward" for call in calls)


@pytest.mark.parametrize("file", PROGRAM, ids=name_of)
def test_functions_are_short_and_ask_for_little(file):
    for function in functions(file):
        most = LOOP_LINES if is_training_loop(function) else FUNCTION_LINES
        assert function.end_lineno - function.lineno + 1 <= most, function.name
        arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
        asked = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
        assert len(asked) <= PARAMETERS or function.name == "__init__", function.name


def test_the_readme_is_a_page():
    text = (ROOT / "README.md").read_bytes()
    assert len(text) <= README_BYTES and len(text.splitlines()) <= README_LINES
