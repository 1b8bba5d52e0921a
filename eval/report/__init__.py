"""The report page, its tables and charts, and model cards."""
