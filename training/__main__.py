"""List of the commands: `python -m training`."""

from __future__ import annotations

import ast
from pathlib import Path

if __name__ == "__main__":
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):  # read, not imported: that takes seconds
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        print(f"{path.stem:18}{first.partition(': `python')[0].rstrip('.')}")
    print("\npython -m training.COMMAND --help lists the settings of one.")
