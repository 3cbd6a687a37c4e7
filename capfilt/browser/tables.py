"""The tables of a run in memory, and how they are filled from its Parquet."""

from __future__ import annotations

from capfilt.browser.shards import ROW_BITS

TABLES = """
    CREATE TABLE samples (
        sample BIGINT, key VARCHAR, is_ok BOOLEAN, refusal VARCHAR, width INTEGER, height INTEGER,
        image_offset BIGINT, image_size BIGINT, image_sha256 BLOB
    );
    CREATE TABLE pairs (number BIGINT, sample BIGINT, is_web BOOLEAN, candidate INTEGER, text VARCHAR);
    CREATE TABLE planted (sample BIGINT, kind VARCHAR);
    CREATE TABLE labels (number BIGINT, verdict VARCHAR);
"""
# A file is named by its shard's ordinal, and what follows the first dash is for people.
SAMPLES = f"""
    INSERT INTO samples
    SELECT (split_part(parse_filename(filename), '-', 1)::BIGINT << {ROW_BITS}) + file_row_number,
        key, status = 'ok', reason, width, height, image_offset, image_size, unhex(image_sha256)
    FROM read_parquet(?, filename = true, file_row_number = true, hive_partitioning = false)
"""
PLANTED = f"""
    INSERT INTO planted
    SELECT (split_part(parse_filename(filename), '-', 1)::BIGINT << {ROW_BITS}) + file_row_number,
        CASE WHEN json_valid(metadata) THEN json_extract_string(metadata, $path) END AS kind
    FROM read_parquet($files, filename = true, file_row_number = true, hive_partitioning = false)
    WHERE kind IS NOT NULL
"""


def json_path(name: str) -> str:
    """Return the path of a field of an object, whatever characters its name has."""
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'$."{escaped}"'
