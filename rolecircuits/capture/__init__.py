"""Feed prompts to a model and reduce its attention to arrays."""
