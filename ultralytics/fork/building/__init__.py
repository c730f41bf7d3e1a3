"""From the rows of a model YAML to layers, within limits."""
