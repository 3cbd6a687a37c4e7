"""A page on which a run is looked at and judged by eye."""
