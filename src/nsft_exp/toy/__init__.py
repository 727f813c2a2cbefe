"""A drawn world in which a small VLM hallucinates as large ones do: by the prior of its texts."""
