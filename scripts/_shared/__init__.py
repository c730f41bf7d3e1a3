"""What several commands of scripts/ share."""
