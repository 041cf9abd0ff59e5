"""The documentation tells the truth: its commands, its tree and its links exist."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shlex
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from tests.fakes import tiny_world
from worldsim.data.dataset_info import DatasetInfo

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PACKAGES = ("worldsim", "policies", "kernels", "training")
NOT_OURS = {"outputs", "runs", "data", "build", "dist", "node_modules"}


@dataclass(frozen=True)
class TreeEntry:
    path: str
    has_children: bool


def documents() -> list[Path]:
    """Return every Markdown file of the project."""
    # A virtual environment may have any name.
    others = NOT_OURS | {path.parent.name for path in ROOT.glob("*/pyvenv.cfg")}
    return [
        path
        for path in sorted(ROOT.rglob("*.md"))
        if not any(part.startswith(".") or part in others for part in path.relative_to(ROOT).parts[:-1])
    ]


def fenced_blocks(text: str, language: str = r"\w*") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def readme_commands() -> Iterator[tuple[str, list[str]]]:
    """Yield the module and the settings of every command of ours in the README."""
    for block in fenced_blocks(README.read_text(encoding="utf-8"), "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.split("&&"):
                match shlex.split(command, comments=True):
                    case ["python", "-m", module, *settings]:
                        yield module, settings
                    case ["python", "play.py", *settings]:
                        yield "play", settings


def code(text: str) -> str:
    """Return what a document shows as code: its fenced blocks and its code spans, one to a line."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*fenced_blocks(text), *re.findall(r"`([^`\n]+)`", outside)])


def annotated_tree() -> list[TreeEntry]:
    """Read the README's tree: two spaces a level, the name, two spaces or more, what it is for."""
    block = next(
        block for block in fenced_blocks(README.read_text(encoding="utf-8")) if "\nworldsim/ " in block
    )
    levels: list[tuple[int, str]] = []
    parents: list[str] = []
    for line in block.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        parents = [*parents[:depth], name]
        levels.append((depth, "".join(parents)))
    following = [*(depth for depth, _ in levels[1:]), 0]
    return [TreeEntry(path, next_ > depth) for (depth, path), next_ in zip(levels, following, strict=True)]


def project_modules() -> Iterator[str]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name != "__init__.py":
                yield path.relative_to(ROOT).as_posix()
    yield "play.py"


def test_readme_has_its_two_commands() -> None:
    blocks = "\n".join(fenced_blocks(README.read_text(encoding="utf-8"))).splitlines()
    assert "pip install -e . && python play.py" in blocks
    assert 'pip install -e ".[dev]" && pytest' in blocks


def test_every_module_that_a_document_runs_exists() -> None:
    for document in documents():
        for module in re.findall(
            r"python -m ((?:training|worldsim|kernels)[\w.]*)", document.read_text("utf-8")
        ):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), (
                f"{document.relative_to(ROOT)} runs python -m {module}, which does not exist"
            )


def test_every_setting_that_the_readme_gives_a_command_exists() -> None:
    for name, overrides in readme_commands():
        main = importlib.import_module(name).main
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            main.convert(compose(main.config_name, overrides=overrides))


def test_the_readme_gives_each_command_of_training() -> None:
    named = {name for name, _ in readme_commands()}
    world_model = ("codec", "pretrain", "finetune", "select_layers", "convert")
    named_there = {
        f"training.{name}" for name in ("collect", *world_model, "evaluate", "report_conversion", "rl")
    }
    assert named == named_there | {"play"}


def test_python_in_the_readme_compiles_and_its_json_is_a_dataset() -> None:
    text = README.read_text(encoding="utf-8")
    for block in fenced_blocks(text, "python"):
        compile(block, "README.md", "exec")
    (example,) = fenced_blocks(text, "json")
    assert DatasetInfo.from_json(json.loads(example)).actions.num_values == (3, 2)


def test_every_make_target_that_a_document_names_exists() -> None:
    targets = set(
        re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for document in documents():
        for target in re.findall(
            r"^make ([a-z-]+)", code(document.read_text(encoding="utf-8")), re.MULTILINE
        ):
            assert target in targets, f"{document.relative_to(ROOT)} says make {target}, which does not exist"


def test_every_name_in_the_tree_exists() -> None:
    missing = [entry.path for entry in annotated_tree() if not (ROOT / entry.path).exists()]
    assert not missing, f"the README's tree names what does not exist: {', '.join(missing)}"


def test_every_module_is_in_the_tree() -> None:
    """A folder with no lines below it stands for all it holds; one with lines below it lists every module."""
    entries = annotated_tree()
    listed = {entry.path for entry in entries}
    whole_folders = tuple(
        entry.path for entry in entries if entry.path.endswith("/") and not entry.has_children
    )
    missing = [
        path for path in project_modules() if path not in listed and not path.startswith(whole_folders)
    ]
    assert not missing, f"the README's tree leaves out: {', '.join(missing)}"


def test_every_relative_link_resolves() -> None:
    broken = []
    for document in documents():
        text = re.sub(
            r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
        )
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target) or target.startswith("#"):
                continue
            if not (document.parent / target.partition("#")[0]).exists():
                broken.append(f"{document.relative_to(ROOT)} -> {target}")
    assert not broken, "links that lead nowhere:\n" + "\n".join(broken)


def test_contributing_guide_and_decisions_stay_short() -> None:
    limits = {ROOT / "CONTRIBUTING.md": 150} | dict.fromkeys((ROOT / "docs/decisions").glob("0*.md"), 40)
    for path, limit in limits.items():
        length = len(path.read_text(encoding="utf-8").splitlines())
        assert length <= limit, f"{path.relative_to(ROOT)} has {length} lines, more than {limit}"


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
