"""The models: MED and its objectives, decoding, bundles, and what stages ask of any captioner or filter."""
