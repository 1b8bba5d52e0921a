"""The ground every stage stands on: artifacts, recipes, the command line, jobs, metrics, corpus and tokens."""

from cluster import unprobed as unprobed
