"""The rules of the layout, held: who may import whom, what is declared, how long a thing may grow."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("worldsim", "policies", "kernels", "training")

# kernels <- worldsim <- training <- play.py, and policies beside worldsim.
MAY_NOT_IMPORT = {
    "kernels": {"worldsim", "policies", "training", "play"},
    "worldsim": {"policies", "training", "play"},
    "policies": {"worldsim", "training", "play"},
    "training": {"play"},
}

# A library that changes or is not always there stays behind one door.
ONLY_IN = {
    "aiohttp": ("worldsim/play/web/*",),
    "diffusers": ("worldsim/wan/*",),
    "h5py": ("worldsim/data/formats/*", "training/export/*"),
    "hydra": ("training/*", "play.py"),
    "omegaconf": ("training/*", "play.py"),
    "pyarrow": ("worldsim/data/formats/*", "training/export/*"),
    "pygame": ("worldsim/ui/*", "worldsim/play/desktop/*"),
    "stable_baselines3": ("worldsim/sb3.py", "training/*", "policies/*"),
    "transformers": ("training/import_wan/*",),
    "triton": ("kernels/*",),
}

MAX_FUNCTION_LINES = 80
MAX_FILE_LINES = 400
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "misc", "common"}


def project_files() -> list[Path]:
    """Return the modules of the project without its tests, relative to its root."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return [path.relative_to(ROOT) for path in [*files, ROOT / "play.py"] if path.exists()]


def all_files() -> list[Path]:
    return [*project_files(), *(path.relative_to(ROOT) for path in sorted((ROOT / "tests").rglob("*.py")))]


def parse(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), filename=str(file))


@cache
def imports(file: Path) -> list[tuple[str, int]]:
    """Return the top-level name and the line of everything that `file` imports, also inside functions."""
    found = []
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Import):
            found += [(alias.name.partition(".")[0], node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = file.parts[0] if node.level else node.module or ""
            found.append((module.partition(".")[0], node.lineno))
    return found


def report(problems: list[str]) -> None:
    assert not problems, "\n  " + "\n  ".join(problems)


def test_imports_point_one_way() -> None:
    report(
        [
            f"{file}:{line} imports {name}: {file.parts[0]} may not know of it"
            for file in project_files()
            for name, line in imports(file)
            if name in MAY_NOT_IMPORT.get(file.parts[0], ())
        ]
    )


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_library_stays_behind_its_door(library: str) -> None:
    report(
        [
            f"{file}:{line} imports {library}, which belongs in {' or '.join(ONLY_IN[library])}"
            for file in project_files()
            for name, line in imports(file)
            if name == library and not any(fnmatch(file.as_posix(), door) for door in ONLY_IN[library])
        ]
    )


def test_every_third_party_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    optional = [extras[name] for name in ("box2d", "doom", "grid", "readers", "rl", "serve", "wan")]
    requirements = sum(optional, project["dependencies"])
    declared = {normalise(re.split(r"[\s\[<>=!~;]", requirement)[0]) for requirement in requirements}
    declared |= {"omegaconf", "triton"}  # part of hydra-core's interface; comes with torch where it exists
    ours = {*PACKAGES, "play"}
    providers = packages_distributions()
    problems = []
    for file in project_files():
        for name, line in imports(file):
            if name in ours or name in sys.stdlib_module_names:
                continue
            names = {normalise(provider) for provider in providers.get(name, [name])}
            if not names & declared:
                problems.append(f"{file}:{line} imports {name}, which pyproject.toml does not declare")
    report(problems)


def normalise(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_ours(package: str) -> None:
    """`kernels` is also a package on PyPI, and the other names are as ordinary."""
    found = import_module(package).__file__
    assert found is not None, f"{package}/__init__.py is missing"
    assert Path(found).resolve() == ROOT / package / "__init__.py", f"{package} is imported from {found}"


def test_package_list_equals_the_folders() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    folders = {".".join(file.parent.parts) for file in project_files() if len(file.parts) > 1}
    assert set(tool["setuptools"]["packages"]) == folders | {"conf"}


def test_every_package_folder_has_an_init_file() -> None:
    folders = {file.parent for file in project_files() if len(file.parts) > 1}
    report(
        [
            f"{folder}/__init__.py is missing"
            for folder in folders
            if not (ROOT / folder / "__init__.py").exists()
        ]
    )


def test_git_ignores_no_module() -> None:
    """A pattern without a leading slash, `data/` say, would keep `worldsim/data` out of every clone."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    paths = [file.as_posix() for file in all_files()]
    command = ["git", "check-ignore", "--no-index", *paths]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    report([f"{path} is ignored by .gitignore" for path in ignored.stdout.split()])


def test_tests_are_no_packages() -> None:
    """An `__init__.py` would make `tests/kernels` the package `kernels`."""
    report([f"{path} may not exist" for path in (ROOT / "tests").rglob("__init__.py")])


def test_files_stay_readable() -> None:
    lengths = {file: len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in all_files()}
    report(
        [
            f"{file} has {length} lines, more than {MAX_FILE_LINES}: what does it want to be split into?"
            for file, length in lengths.items()
            if length > MAX_FILE_LINES
        ]
    )


def test_functions_stay_readable() -> None:
    problems = []
    for file in all_files():
        for node in ast.walk(parse(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    problems.append(
                        f"{file}:{node.lineno} {node.name} has {length} lines, more than {MAX_FUNCTION_LINES}"
                    )
    report(problems)


def test_file_names_say_what_is_inside() -> None:
    report(
        [f"{file}: name it after what it does" for file in all_files() if file.stem in NAMES_THAT_SAY_NOTHING]
    )


def test_code_is_ascii() -> None:
    problems = []
    for file in all_files():
        for number, line in enumerate((ROOT / file).read_text(encoding="utf-8").splitlines(), start=1):
            if not line.isascii():
                problems.append(f"{file}:{number} is not ASCII: {line.strip()}")
    report(problems)


def test_banned_patterns_are_absent() -> None:
    """The bans of `.pre-commit-config.yaml`, held also where nobody installed the hooks."""
    hooks = OmegaConf.load(ROOT / ".pre-commit-config.yaml").repos[0].hooks
    bans = {
        hook.name: re.compile(hook.entry) for hook in hooks if hook.language == "pygrep" and hook.get("types")
    }
    assert len(bans) >= 3, "the bans of .pre-commit-config.yaml were not found"
    problems = []
    for file in all_files():
        for number, line in enumerate((ROOT / file).read_text(encoding="utf-8").splitlines(), start=1):
            problems += [
                f"{file}:{number} {name}: {line.strip()}" for name, ban in bans.items() if ban.search(line)
            ]
    report(problems)


# What a user imports, and what `python -m training.X` runs. All else lies in a folder of meaning.
ROOTS = {
    "worldsim": {
        "actions",
        "codec",
        "errors",
        "outcome",
        "sampler",
        "sb3",
        "seeds",
        "settings",
        "simulator",
        "starts",
        "state",
    },
    "training": {
        *(
            "benchmark",
            "calibrate",
            "codec",
            "collect",
            "convert",
            "evaluate",
            "features",
            "finetune",
            "long_play",
            "matched",
        ),
        *("outcome_heads", "pretrain", "report_conversion", "rl", "select_layers"),
    },
}
MAX_MODULES = 15


def folders() -> list[Path]:
    """Return the folders of the packages, relative to the project's root."""
    return sorted({file.parent for file in project_files() if len(file.parts) > 1})


def modules_of(folder: Path) -> set[str]:
    return {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__", "__main__"}


@pytest.mark.parametrize("package", sorted(ROOTS))
def test_the_root_of_a_package_is_its_face(package: str) -> None:
    assert modules_of(Path(package)) == ROOTS[package]


def test_every_folder_says_what_it_holds_and_holds_few_modules() -> None:
    problems = []
    for folder in folders():
        text = ast.get_docstring(parse(folder / "__init__.py")) or ""
        count = len(modules_of(folder))
        if not text.split("\n")[0].endswith("."):
            problems.append(f"{folder}/__init__.py needs a sentence that says what the folder holds")
        if not 2 <= count <= MAX_MODULES:
            problems.append(f"{folder} holds {count} modules, not 2 to {MAX_MODULES}")
    report(problems)


def test_no_module_repeats_the_name_of_its_folder() -> None:
    report(
        [
            f"{folder / module}.py: its folder says {folder.name} already"
            for folder in folders()
            for module in modules_of(folder)
            if module.startswith(f"{folder.name}_")
        ]
    )


# What CONTRIBUTING names otherwise.
PRIVATE_WORDS = re.compile(
    r"what is no number|begins? anew|careless|\b(hear|heard|spoil|spoiled|deal_out|contender|contestant)\b"
)


def test_words_are_those_of_the_field() -> None:
    report(
        [
            f"{file}:{number}: {found[0]!r} has another name in CONTRIBUTING.md"
            for file in project_files()
            for number, line in enumerate((ROOT / file).read_text(encoding="utf-8").splitlines(), start=1)
            if (found := PRIVATE_WORDS.search(line))
        ]
    )


QUESTIONS = re.compile(r"(What|Which|How|Who|Whether|Where|Does|Why)\b")


def test_module_docstrings_are_headings() -> None:
    texts = {file: ast.get_docstring(parse(file)) or "" for file in all_files()}
    report(
        [
            f"{file}: {text.splitlines()[0]!r} is a question; write a noun phrase, as for a heading"
            for file, text in texts.items()
            if QUESTIONS.match(text)
        ]
    )


def room_of(module: str) -> str:
    """Return the folder of a module; beside folders, as in the root of a package, it stands for itself."""
    path = ROOT / Path(*module.split("."))
    if path.is_dir():
        return module
    has_folders = any((each / "__init__.py").exists() for each in path.parent.iterdir() if each.is_dir())
    return module if has_folders else module.rpartition(".")[0]


def rooms() -> dict[str, set[str]]:
    """Return which folders each folder imports from, by their dotted names."""
    found: dict[str, set[str]] = {}
    for file in project_files():
        if len(file.parts) == 1:
            continue
        here = room_of(".".join(file.with_suffix("").parts).removesuffix(".__init__"))
        for node in ast.walk(parse(file)):
            if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] not in PACKAGES:
                continue
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                is_module = (ROOT / Path(*name.split("."))).with_suffix(".py").exists()
                found.setdefault(here, set()).add(room_of(name if is_module else node.module or ""))
    return {room: others - {room} for room, others in found.items()}


def test_folders_import_each_other_in_no_circle() -> None:
    try:
        tuple(TopologicalSorter(rooms()).static_order())
    except CycleError as error:
        pytest.fail(f"these import each other in a circle: {' <- '.join(error.args[1])}")
