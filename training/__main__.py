"""List of the commands: `python -m training`."""

from __future__ import annotations

import ast
from pathlib import Path

if __name__ == "__main__":
    here = Path(__file__).parent
    files = {path.stem: path for path in here.glob("[!_]*.py")}
    files |= {path.parent.name: path.with_name("__init__.py") for path in here.glob("*/__main__.py")}
    for name, path in sorted(files.items()):  # read, not imported: that takes seconds
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        print(f"{name:18}{first.partition(': `python')[0].rstrip('.')}")
    print("\npython -m training.COMMAND --help lists the settings of one.")
