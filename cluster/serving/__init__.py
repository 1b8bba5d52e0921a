"""Pages for people: a small HTTP server, and links as QR codes."""
