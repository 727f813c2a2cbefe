"""A drawn world in which a small VLM hallucinates for the reason that large ones do: the prior of its texts."""
