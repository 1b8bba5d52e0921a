"""What every stage stands on: storage, artifacts, actors, corpus, tokens, models, jobs, inspection."""
