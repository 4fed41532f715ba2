"""MetaSchedule: our records in its databases and back, our strategies in its tuner."""

from calumma.integrations.metaschedule.interchange import (
    RECORD_FILE,
    STRATEGY,
    WORKLOAD_FILE,
    Exported,
    Imported,
    add_new,
    export_database,
    import_database,
)
from calumma.integrations.metaschedule.search_strategy import search_strategy

__all__ = [
    "RECORD_FILE",
    "STRATEGY",
    "WORKLOAD_FILE",
    "Exported",
    "Imported",
    "add_new",
    "export_database",
    "import_database",
    "search_strategy",
]
