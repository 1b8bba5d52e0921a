"""Latency on phones: over adb, in a browser, or on a stand-in host."""
