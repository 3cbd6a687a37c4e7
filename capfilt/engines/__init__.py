"""Engines hand out items of work to workers; which engine is used changes no result."""
