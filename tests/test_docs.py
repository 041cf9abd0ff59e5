"""The documentation held to the truth: commands, settings, names, links, folders."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from tests.fakes import tiny_world
from training.cli.overrides import read_overrides
from worldsim.data.dataset_info import DatasetInfo

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
EXPERIMENTS = ROOT / "docs/experiments"
PACKAGES = ("worldsim", "policies", "kernels", "training")
NOT_OURS = {"outputs", "runs", "data", "build", "dist", "node_modules"}
MAX_README_LINES, MAX_COLUMNS = 160, 110

# Commands are given to a shell without programs: it expands what a reader's shell would, and `python` prints
# its arguments.
SHELL = """\
PATH=/nowhere
python() { for word in "$@"; do printf '%s\\n' "$word"; done; printf '\\f'; }
command_not_found_handle() { return 0; }
"""


def documents() -> list[Path]:
    """Return every Markdown file of the project."""
    # A virtual environment may have any name.
    others = NOT_OURS | {path.parent.name for path in ROOT.glob("*/pyvenv.cfg")}
    return [
        path
        for path in sorted(ROOT.rglob("*.md"))
        if not any(part.startswith(".") or part in others for part in path.relative_to(ROOT).parts[:-1])
    ]


def read(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def fenced_blocks(text: str, language: str = r"[^\n`]*") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def code(text: str) -> str:
    """Return what a document shows as code: its fenced blocks and its code spans, one to a line."""
    spans = re.findall(r"`([^`]+)`", prose(text))
    return "\n".join([*fenced_blocks(text), *(" ".join(span.split()) for span in spans)])


def commands(block: str) -> Iterator[list[str]]:
    """Yield the arguments of each `python` in a block of shell commands, as a shell expands them."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash to expand commands")
    shell = subprocess.run([bash, "-c", SHELL + block], capture_output=True, text=True, check=True, cwd="/")
    assert not shell.stderr, f"{shell.stderr} in\n{block}"
    for arguments in shell.stdout.split("\f")[:-1]:
        yield arguments.splitlines()


def page_commands() -> Iterator[tuple[Path, str, list[str]]]:
    """Yield page, module and settings of every command of ours in the README and the pages beside it."""
    for page in PAGES:
        for block in fenced_blocks(read(page), "bash"):
            for arguments in commands(block):
                match arguments:
                    case ["-m", module, *settings] if module.startswith("training."):
                        # Those of Hydra's launchers are a plugin's, which is not always there.
                        yield page, module, [s for s in settings if not s.startswith(("--multirun", "hydra"))]
                    case ["play.py", *settings]:
                        yield page, "play", settings


def module_file(parts: Sequence[str]) -> Path | None:
    """Return the file of a module of ours."""
    path = ROOT.joinpath(*parts)
    found = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()]
    return found[0] if found else None


def names_in(file: Path) -> set[str]:
    """Return the names that a module binds at its top level, and those it hands out on request."""
    names: set[str] = set()
    for node in ast.parse(read(file)).body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name for alias in aliases}
            case _:
                names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return names


def is_there(dotted: str) -> bool:
    """Whether `package.module.name` names a package, a module, or something that a module binds."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        if file := module_file(parts[:end]):
            return end == len(parts) or parts[end] in names_in(file)
    return False


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def sections(text: str) -> dict[str, str]:
    """Return anchor and text of each section, as far as the next heading."""
    pieces = re.split(r"^#{1,6} +(.+)$", prose(text), flags=re.MULTILINE)
    return {slug(heading.strip()): body for heading, body in zip(pieces[1::2], pieces[2::2], strict=True)}


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(text))


def table_rows(text: str) -> list[list[str]]:
    """Return the cells of the rows below the heads of all tables."""
    lines = text.splitlines()
    heads = [i for i, line in enumerate(lines) if re.fullmatch(r"\|[-:| ]+\|", line)]
    rows = []
    for first in heads:
        for line in lines[first + 1 :]:
            if not line.startswith("|"):
                break
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def folder_tree() -> list[str]:
    """Read the README's tree: two spaces a level, the name, two spaces or more, what it is for."""
    block = next(block for block in fenced_blocks(read(README)) if re.search(r"^worldsim/ ", block, re.M))
    paths: list[str] = []
    parents: list[str] = []
    for line in block.splitlines():
        parents = [*parents[: (len(line) - len(line.lstrip())) // 2], line.split()[0]]
        paths.append("".join(parents))
    return paths


def test_the_readme_is_short_and_has_its_two_commands() -> None:
    assert len(read(README).splitlines()) <= MAX_README_LINES
    blocks = "\n".join(fenced_blocks(read(README))).splitlines()
    assert "pip install -e . && python play.py" in blocks
    assert 'pip install -e ".[dev]" && pytest' in blocks


def test_every_module_that_a_document_runs_exists() -> None:
    for document in documents():
        for module in re.findall(r"python -m ((?:training|worldsim|kernels)[\w.]*)", read(document)):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), (
                f"{name_of(document)} runs python -m {module}, which does not exist"
            )


def test_every_setting_that_a_page_gives_a_command_exists() -> None:
    for page, name, overrides in page_commands():
        main = importlib.import_module(name).main
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
                read = read_overrides(overrides, main.config_class)
                main.convert(compose(main.config_name, overrides=read))
        except Exception as error:
            error.add_note(f"{name_of(page)}: {name} {' '.join(overrides)}")
            raise


def test_the_pages_give_each_command_of_training() -> None:
    named = {name for _, name, _ in page_commands()}
    of_worlds = ("codec", "pretrain", "finetune", "matched", "select_layers", "convert", "outcome_heads")
    others = (
        *("check", "export", "import_wan", "ingest"),
        "benchmark",
        "collect",
        "features",
        "learn",
        "calibrate",
        "evaluate",
        "odometry",
        "report_conversion",
        "rl",
        "sharpen",
    )
    assert named == {f"training.{name}" for name in (*of_worlds, *others)} | {"play"}


def test_the_readme_trains_a_world_in_one_command() -> None:
    named = [name for page, name, _ in page_commands() if page == README]
    assert named == ["play", "training.learn", "play"]


def test_python_in_the_pages_compiles_and_json_is_a_dataset() -> None:
    for page in PAGES:
        for block in fenced_blocks(read(page), r"python\w*(?: sb3)?"):
            compile(block, name_of(page), "exec")
    (example,) = [block for page in PAGES for block in fenced_blocks(read(page), "json")]
    assert DatasetInfo.from_json(json.loads(example)).actions.num_values == (3, 2)


def test_every_module_that_a_page_imports_binds_what_it_takes() -> None:
    missing = []
    for page in PAGES:
        for block in fenced_blocks(read(page), r"python(?: sb3)?"):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGES):
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                    missing += [f"{name_of(page)}: {name}" for name in names if not is_there(name)]
    assert not missing, "imports of what does not exist:\n" + "\n".join(missing)


def test_every_file_and_module_that_a_document_names_exists() -> None:
    """Not in the experiments: an entry names files of its commit."""
    packages = "|".join(PACKAGES)
    files = {path.name for path in [*ROOT.glob("*.py"), *(ROOT / "tests").rglob("*.py")]}
    files |= {path.name for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    files |= {"utils.py", "helpers.py", "misc.py", "common.py"}  # what no file may be called
    missing = []
    for document in documents():
        if EXPERIMENTS in document.parents:
            continue
        shown = code(read(document))
        paths = re.findall(rf"(?<![\w./-])((?:{packages}|conf|tests)/[\w./-]*\w)(?![\w*])", shown)
        dotted = re.findall(rf"(?<![\w./=-])((?:{packages})\.(?!py\b)\w+(?:\.\w+)*)", shown)
        bare = re.findall(r"(?<![\w./*-])(\w+\.py)\b", shown)
        missing += [f"{name_of(document)}: {path}" for path in paths if not (ROOT / path).exists()]
        missing += [f"{name_of(document)}: {name}" for name in dotted if not is_there(name)]
        missing += [f"{name_of(document)}: {name}" for name in bare if name not in files]
    assert not missing, "names of what does not exist:\n" + "\n".join(missing)


def test_every_make_target_that_a_document_names_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", read(ROOT / "Makefile"), re.MULTILINE))
    for document in documents():
        for target in re.findall(r"^make ([a-z-]+)", code(read(document)), re.MULTILINE):
            assert target in targets, f"{name_of(document)} says make {target}, which does not exist"


def test_the_tree_names_every_folder_and_no_file() -> None:
    tree = folder_tree()
    assert [path for path in tree if not path.endswith("/")] == []
    folders = {
        file.parent.relative_to(ROOT).as_posix() + "/"
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
    }
    assert set(tree) == folders | {"conf/", "tests/", "docs/"}


def test_every_relative_link_resolves() -> None:
    broken = []
    for document in documents():
        for target in links(read(document)):
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = target.partition("#")
            path = (document.parent / file).resolve() if file else document
            if not path.exists() or (anchor and anchor not in sections(read(path))):
                broken.append(f"{name_of(document)} -> {target}")
    assert not broken, "links that lead nowhere:\n" + "\n".join(broken)


def test_contributing_guide_and_decisions_stay_short() -> None:
    limits = {ROOT / "CONTRIBUTING.md": 150} | dict.fromkeys((ROOT / "docs/decisions").glob("0*.md"), 40)
    for path, limit in limits.items():
        length = len(read(path).splitlines())
        assert length <= limit, f"{name_of(path)} has {length} lines, more than {limit}"


def test_lines_of_pages_are_short() -> None:
    """But for tables, headings, and what cannot be broken: commands, pictures and links."""
    for document in [*PAGES, *EXPERIMENTS.glob("*.md"), ROOT / "CHANGELOG.md"]:
        text = re.sub(r"<!-- begin.*?<!-- end -->", "", prose(read(document)), flags=re.DOTALL)
        for line in text.splitlines():
            in_one_piece = line.startswith(("|", "#", "![", "      ")) or re.search(r"\]\(\S+$", line)
            assert len(line) <= MAX_COLUMNS or in_one_piece, f"{name_of(document)}: {line}"


def test_every_decision_is_in_the_index_with_its_status() -> None:
    rows = {row[0]: row[1:] for row in table_rows(read(ROOT / "docs/decisions/README.md"))}
    pages = sorted((ROOT / "docs/decisions").glob("0*.md"))
    assert list(rows) == [f"[{page.name[:4]}]({page.name})" for page in pages]
    for page, (title, status) in zip(pages, rows.values(), strict=True):
        first, second, *_ = (line for line in read(page).splitlines() if line)
        assert re.fullmatch(rf"# {page.name[:4]}:? {re.escape(title)}", first), f"{page.name}: {title}"
        assert second == "Status: " + re.sub(r"\[(\d+)\]\(\S+\)", r"\1", status), page.name
        assert re.match(r"Status: (in force$|(superseded|changed) by \d{4})", second), page.name


def test_every_experiment_is_in_the_index() -> None:
    rows = table_rows(read(EXPERIMENTS / "README.md"))
    linked = [re.fullmatch(r"\[(.+)\]\((\S+)\)", question) for _, question, *_ in rows]
    entries = {
        f"{page.name}#{anchor}"
        for page in EXPERIMENTS.glob("*.md")
        for anchor in sections(read(page))
        if re.match(r"\d{4}-\d\d-\d\d", anchor)
    }
    assert {found[2] for found in linked if found} == entries
    assert len(rows) == len(entries)
    for date, _, answer, decision in rows:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", date), date
        assert answer
        assert re.fullmatch(r"-|\[\d{4}\]\(\.\./decisions/\S+\)", decision), decision


def test_the_program_on_the_page_about_agents_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small world in the place of the shipped one; without SB3, up to where it is imported."""
    pieces = re.findall(
        r"^```python( sb3)?\n(.*?)^```",
        (ROOT / "docs/agents.md").read_text("utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    has_sb3 = importlib.util.find_spec("stable_baselines3") is not None
    program = "\n".join(block for needs_sb3, block in pieces if has_sb3 or not needs_sb3)
    assert program.count('"doom-rooms"') >= 6
    folder = tmp_path / "world"
    tiny_world(num_starts=4).save_pretrained(folder, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*no outcome heads")
        exec(compile(program.replace('"doom-rooms"', repr(str(folder))), "docs/agents.md", "exec"), {})
