"""capfilt: bootstrap an image-text dataset by captioning and filtering (CapFilt; BLIP, section 3.3).

Importing this package imports no torch: commands answer at once, and models load when used.
"""

__version__ = "0.1.0"
