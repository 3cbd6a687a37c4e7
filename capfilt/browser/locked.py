"""DuckDB in memory that reaches the record of one run and no other file, whatever it is asked later."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from capfilt.provenance.catalog import duckdb_path

if TYPE_CHECKING:
    import duckdb

    from capfilt.provenance.rundir import RunDir

_MEMORY = "70%"
"""Of the machine's memory; beyond it rows are put on disk."""


def locked_connection(run: RunDir) -> duckdb.DuckDBPyConnection:
    """Return an empty database whose configuration can no more be changed; the caller closes it."""
    import duckdb

    connection = duckdb.connect(
        config={
            "temp_directory": str(Path(tempfile.gettempdir()) / f"capfilt-browse-{os.getpid()}"),
            "memory_limit": _MEMORY,
            "python_enable_replacements": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
    )
    try:
        folders = {duckdb_path(run.provenance, escaped=escaped) for escaped in (True, False)}
        listed = ", ".join("'" + folder.replace("'", "''") + "'" for folder in sorted(folders))
        connection.execute(f"SET allowed_directories = [{listed}]")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
    except BaseException:
        connection.close()
        raise
    return connection
