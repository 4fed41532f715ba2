"""Records of measurements and of tuning sessions: the capital that every later run starts from.

`SqlStore` keeps them in a file that many processes may share, `MemoryStore` in this process. Both are append-only.
`best` says which configuration the records speak for; JSON lines carry records between stores.
"""

from calumma.database.best import best
from calumma.database.jsonl import export_jsonl, import_jsonl, write_jsonl
from calumma.database.memory import MemoryStore
from calumma.database.sql import SqlStore, default_path

__all__ = ["MemoryStore", "SqlStore", "best", "default_path", "export_jsonl", "import_jsonl", "write_jsonl"]
