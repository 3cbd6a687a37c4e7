"""The verbs: train, recaption and score, judge, export; a pipeline is a list of them."""
