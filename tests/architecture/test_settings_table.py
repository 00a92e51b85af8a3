"""README's table of settings is the one that service.settings derives: a knob is described in one place only."""

from __future__ import annotations

import re
from pathlib import Path

from service import settings

MARKED = re.compile(r"<!-- settings -->\n(.*?)\n<!-- /settings -->", re.S)


def test_readme_shows_the_table_that_the_settings_derive(checkout: Path) -> None:
    """Between `<!-- settings -->` and `<!-- /settings -->`; after a change, paste what the failure prints."""
    shown = MARKED.search((checkout / "README.md").read_text())
    assert shown, "README.md has no <!-- settings --> ... <!-- /settings -->"
    assert shown[1].strip() == settings.readme_table().strip()
