"""The job queue: ledger, scheduler, workers, retries, client and command line."""
