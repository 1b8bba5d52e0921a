"""A corpus to full token rows in Arrow files."""
