"""The web page that measures phones."""
