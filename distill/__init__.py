"""From teacher and token rows to a student."""

from cluster import unprobed as unprobed
