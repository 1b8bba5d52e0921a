"""Result files: their schemas, the values derived from them, the verdicts."""
