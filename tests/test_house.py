"""Tests of the house: who imports whom, what else may be in the process, how it is installed and packed."""
import ast
import functools
import os
import re
import shutil
import subprocess
import sys

import pytest

from llama2_py.console import VERSION
from tests.helpers import HERE, read_bytes, some

TOP = {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "conftest.py", "plain.py", "llama2.py", "merkle.py",
       "trace.py", "test_llama2.py", "test_merkle.py", ".gitignore"}
FOLDERS = {"llama2_py", "tests", "docs", "tools", "vectors", ".ci"}
METHODS = ["fork", "spawn", "forkserver"]
# Who imports from above, within a function: what only some callers need
UPWARD = {("llama2", "llama2_py.command"), ("llama2", "llama2_py.program"), ("llama2", "llama2_py.referee.audit")}
FLOORS = ["llama2_py.console", "llama2_py.engine", "llama2_py.log", "llama2_py.doctor", "llama2_py.referee"]


def tracked():
    """The project's files: those that git knows, or, in a copy without git, those that are there."""
    done = subprocess.run(["git", "ls-files"], cwd=HERE, capture_output=True, text=True)
    if done.returncode == 0 and done.stdout:
        return done.stdout.split()
    return [os.path.relpath(os.path.join(folder, name), HERE) for folder, _, names in os.walk(HERE) for name in names
            if not {"__pycache__", ".venv", ".hypothesis", ".git"} & set(folder.split(os.sep))]


@functools.cache
def imports(path, functions=True):
    """The modules that a file imports; functions: also within functions."""
    tree = ast.parse(read_bytes(os.path.join(HERE, path)))
    found = []
    for node in ast.walk(tree) if functions else tree.body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module, *[f"{node.module}.{alias.name}" for alias in node.names]]
    return found


def floor(module):
    """How high a module stands: it may import what stands lower, or beside it in its room."""
    if module in ("merkle", "plain"):
        return 0
    if module == "llama2":
        return 2.5  # between the doctor and the engine
    below = [i for i, room in enumerate(FLOORS) if (module + ".").startswith(room + ".")]
    if below:
        return {0: 0, 1: 1, 2: 2, 3: 3, 4: 3}[below[0]]
    return 4 if module.startswith("llama2_py.") else None


def sources():
    return [path for path in tracked() if path.endswith(".py") and (path.startswith("llama2_py/") or path in (
        "llama2.py", "merkle.py", "plain.py")) and "stories" not in path]


def test_the_top_level_is_what_the_project_is():
    top = {path.split("/")[0] for path in tracked()}
    assert TOP <= top
    if os.path.isdir(os.path.join(HERE, ".git")):  # beside a copy of the files there may be others
        assert top <= TOP | FOLDERS


@pytest.mark.parametrize("path", sources())
def test_nobody_imports_a_door_and_imports_run_one_way(path):
    own = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    for module in imports(path):
        assert module != "trace" and not module.startswith("trace.")
        if floor(module) is None or module == "llama2_py":
            continue
        below = floor(module) < floor(own) or (
            floor(module) == floor(own) and module.split(".")[:2] == own.split(".")[:2])
        lazily = module not in set(imports(path, functions=False))
        assert below or floor(own) == 4 or lazily and any(
            own == user and f"{module}.".startswith(f"{used}.") for user, used in UPWARD), f"{own} imports {module}"


@pytest.mark.parametrize("path", [path for path in sources() if path.startswith("llama2_py/")])
def test_every_module_is_on_the_map(path):
    *_, room, name = path.removesuffix(".py").split("/")
    words = re.findall(r"\w+", read_bytes(os.path.join(HERE, "docs", "architecture.md")).decode())
    assert (room if name == "__init__" else name) in words


def test_no_import_goes_in_a_circle():
    graph = {}
    for path in sources():
        name = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        graph[name] = {module for module in imports(path, functions=False)}
    done, open_ = set(), []

    def visit(name):
        assert name not in open_, f"a circle: {' > '.join([*open_, name])}"
        if name in done or name not in graph:
            return
        open_.append(name)
        for module in sorted(graph[name]):
            visit(module)
        open_.pop()
        done.add(name)

    for name in graph:
        visit(name)


def python(code, *options, folder=HERE, **more):
    """Run code in a process of its own, with the project's folder in sys.path."""
    path = f"import sys; sys.path.{options[0] if options else 'append'}({folder!r})\n"
    if options == ("insert",):
        path = f"import sys; sys.path.insert(0, {folder!r})\n"
    return subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True, **more)


@pytest.mark.parametrize("how", some(1, ["append", "insert"]))
def test_it_is_a_good_neighbour_of_modules_with_plain_names(how, tmp_path):
    names = ["events", "console", "workers", "page", "compare", "checkpoint", "arithmetic", "referee", "operations"]
    for name in names:
        (tmp_path / f"{name}.py").write_text("mine = True\n")
    code = f"""
sys.path.insert(1, {str(tmp_path)!r})
import trace as standard
import {", ".join(names)}
import llama2
with llama2.Transformer(llama2.__file__[:-len('llama2.py')] + 'llama2_py/stories/model.bin') as model:
    assert len(model.forward(1, 0)) == 512
assert all(sys.modules[name].mine for name in {names})
import trace
assert trace is standard
"""
    done = python(code, how, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_llama2_loads_the_engine_alone():
    done = python("import llama2\nprint(*sorted(name for name in sys.modules if name.startswith('llama2_py.')))")
    rooms = {name.split(".")[1] for name in done.stdout.split()}
    assert rooms == {"console", "engine"}


STORY = b"Once upon a time, there was"


def start_by(method, folder):
    """Have every Python with this folder in its path start processes by a method."""
    code = f"import multiprocessing\nmultiprocessing.set_start_method({method!r})\n"
    (folder / "sitecustomize.py").write_text(code)


@pytest.mark.parametrize("program, arguments, method, beginning", [
    *some(1, [("llama2.py", ["-t", "0", "-n", "8", "--workers", "2"], method, STORY) for method in METHODS]),
    ("trace.py", ["-h"], "fork", b"usage: trace.py"), ("plain.py", ["1", "Once"], "fork", b"Once")])
def test_the_files_run_from_any_directory_and_any_folder(program, arguments, method, beginning, tmp_path):
    home = tmp_path / "mit Umläuten und Leerzeichen"
    home.mkdir()
    for name in "llama2.py", "trace.py", "plain.py", "merkle.py":
        shutil.copy(os.path.join(HERE, name), home)
    shutil.copytree(os.path.join(HERE, "llama2_py"), home / "llama2_py")
    start_by(method, tmp_path)
    with subprocess.Popen([sys.executable, home / program, *arguments], cwd=tmp_path, stdout=subprocess.PIPE,
                          env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONUTF8": "1"}) as process:
        assert process.stdout.read(len(beginning)) == beginning
        process.terminate()


def test_the_version_has_one_value():
    assert f'version = "{VERSION}"' in read_bytes(os.path.join(HERE, "pyproject.toml")).decode()
    assert f"## {VERSION}" in read_bytes(os.path.join(HERE, "CHANGELOG.md")).decode()


# ----------------------------------------------------------------------------
# Installed, and packed

@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project's files alone, since building leaves others beside them."""
    folder = tmp_path_factory.mktemp("copy") / "project"
    for path in tracked():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.path.join(HERE, path), folder / path)
    return folder


@pytest.mark.slow
def test_it_can_be_installed_and_has_two_commands(copy, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    scripts = tmp_path / "venv" / "bin"
    subprocess.run([scripts / "python", "-m", "pip", "install", "-q", copy], check=True, cwd=tmp_path)
    for workers in "1", "2":
        done = subprocess.run([scripts / "llama2", "-t", "0", "-n", "6", "--workers", workers, "--trace", "t"],
                              cwd=tmp_path, capture_output=True)
        assert done.returncode == 0 and done.stdout.startswith(b"Once upon a time, there"), done.stderr
    page = subprocess.run([scripts / "llama2-trace", "page", "t"], cwd=tmp_path, capture_output=True)
    assert page.returncode == 0 and page.stdout.startswith(b"<!DOCTYPE html>"), page.stderr
    code = "import llama2, merkle, trace; assert 'site-packages' in llama2.__file__ and not hasattr(trace, 'Log')"
    subprocess.run([scripts / "python", "-c", code], cwd=tmp_path, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_can_be_packed_into_one_file(copy, tmp_path, method):
    subprocess.run([sys.executable, "-m", "zipapp", copy, "-m", "llama2_py.command:main", "-o", tmp_path / "l.pyz"],
                   check=True)
    start_by(method, tmp_path)
    for workers in "1", "2":
        done = subprocess.run([sys.executable, tmp_path / "l.pyz", "-t", "0", "-n", "8", "--workers", workers],
                              cwd=tmp_path, capture_output=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
        assert done.returncode == 0 and done.stdout.startswith(STORY), done.stderr
