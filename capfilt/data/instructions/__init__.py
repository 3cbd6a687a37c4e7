"""Data sets as instructions with answers: which there are, how they read, how they are asked and mixed.

A data set is a row of a table (registry.toml), its words are templates of its category (categories.toml), and
its files are read by the format they are published in (formats/): so a further one is a row, not code.
"""
