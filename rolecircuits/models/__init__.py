"""Find a model, refuse what cannot be measured, and read it."""
