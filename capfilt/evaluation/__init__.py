"""Measuring models on pairs they were not trained on."""
