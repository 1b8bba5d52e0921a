"""From a student to something that runs elsewhere."""

from cluster import unprobed as unprobed
