"""curator: a clinician teaches a local language model, pick by pick."""

__version__ = "0.1.0"
