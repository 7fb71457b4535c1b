"""Edit a model in the middle of its forward pass, and measure what changes further on."""
