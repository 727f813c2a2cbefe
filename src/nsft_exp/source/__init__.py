"""Where samples come from: one module for each format."""
