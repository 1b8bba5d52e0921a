"""Recipes, artifacts, the commit protocol, the cache, stages and their command line."""
