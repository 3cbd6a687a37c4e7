"""Bytes in, bytes out: tars of strangers' samples, pictures, tars of our own. Knows no model."""
