"""Readers of source documents: files of many formats, hub data sets, docstrings."""
