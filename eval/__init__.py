"""From a student, a teacher or an export to numbers."""

from cluster import unprobed as unprobed
