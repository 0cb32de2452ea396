"""Whether a machine sees a comparison's or a search's folder, and where its runs go when it does not."""

import json
from pathlib import Path

from ...tasks.language.data.prepared import default_cache

# What travels back from a machine that does not see the folder, in the order in which it is written there.
SMALL_FILES = ("config.yaml", "log.txt", "metrics.jsonl", "run.json")
# The file of a comparison, and that of a search, which holds an id.
SEARCH = "search.json"
TOLD_BY = ("comparison.json", SEARCH)


def folder_id(folder: Path) -> str:
    """Return what a comparison or a search is told by; empty where there is none to be seen."""
    for name in TOLD_BY:
        try:
            return str(json.loads((folder / name).read_text(encoding="utf-8")).get("id", ""))
        except (OSError, ValueError):
            continue
    return ""


def own_folder(id: str) -> Path:
    """Return where a machine keeps the runs of a folder that it does not see."""
    return default_cache() / "runs" / id
