"""The process that follows a run: ``python -m distill.follow RUN --to TRACKER``."""

from distill.follow.cli import main

main()
