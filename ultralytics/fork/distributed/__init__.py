"""Training in several processes under torch's elastic launcher."""
