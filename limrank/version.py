"""The version of limrank, for the package's metadata and for everything that limrank writes."""

__version__ = "0.1.0"
