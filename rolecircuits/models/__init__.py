"""Find a model, refuse what cannot be measured, and read it: source, architecture, device, weights."""
