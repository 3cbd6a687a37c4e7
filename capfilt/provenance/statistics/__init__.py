"""Figures over what a run recorded: plain values from DuckDB over the committed Parquet, no model."""
