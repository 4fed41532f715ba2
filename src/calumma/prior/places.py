"""Where priors lie on disk, and a digest of what is there. Nothing here loads TVM."""

from __future__ import annotations

import hashlib
from pathlib import Path

import platformdirs

SHIPPED = Path(__file__).resolve().parent / "shipped"
NONE = "none"
"""What stands for "no prior" where a name is expected."""


def user_folder() -> Path:
    """Where the user's own priors lie."""
    return platformdirs.user_data_path("calumma", appauthor=False) / "priors"


def digest(name: str) -> str:
    """SHA-256, in hexadecimal, of every file that decides what a name stands for and what that prior says."""
    found = hashlib.sha256(name.encode())
    if name == NONE:
        return found.hexdigest()
    own = [path for path in user_folder().rglob("*") if path.is_file()]
    newest_first = sorted(own, key=lambda path: path.stat().st_mtime, reverse=True)
    shipped = sorted(path for path in SHIPPED.iterdir() if path.is_file())
    for path in (*newest_first, *shipped, Path(name)):
        if path.is_file():
            found.update(repr((str(path), hashlib.sha256(path.read_bytes()).digest())).encode())
    return found.hexdigest()
