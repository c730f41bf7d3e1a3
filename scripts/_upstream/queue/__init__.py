"""The patch queue: laying it down, exporting edits to it, and carrying it to other releases."""
