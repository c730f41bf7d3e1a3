"""Nothing is sent, fetched or installed unless the user asked for it."""
