"""What the Hugging Face Hub shows and holds: model cards, and the upload of a model folder."""
