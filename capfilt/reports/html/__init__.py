"""The report of a run: one page that holds everything it shows and asks nothing of any network."""
