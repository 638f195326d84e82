"""Where test vectors from outside lie: a folder `shared` beside the repository, or CAUSEWAY_SHARED."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("CAUSEWAY_SHARED", ROOT.parent / "shared"))


def load_vectors(name: str) -> Any:
    """The JSON of shared/vectors/`name`; skips the test aloud where the folder is absent."""
    path = SHARED / "vectors" / name
    if not SHARED.is_dir():
        pytest.skip(f"outside vectors are absent: {SHARED} (set CAUSEWAY_SHARED)")
    return json.loads(path.read_text())
