"""README says what the engine does: every variable, its default and its meaning, and no other."""

import re
from pathlib import Path

from engine.config import EngineConfig
from engine.config.variable import variables_of

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_readme_has_every_variable_with_its_default_and_no_other():
    section = README.partition("## Configuration\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \| (.+?) \| (.+?) \| (.+) \|$", section, re.MULTILINE)

    assert rows == [
        (row.name, row.unit, row.default_text, row.help) for row in variables_of(EngineConfig)
    ]
