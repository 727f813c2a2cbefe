"""Tables, figures, the page and W&B runs of a study, from its cells' files."""
