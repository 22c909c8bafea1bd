"""Re-ranking: what a search found in, something better out."""
