"""Pages and tables for people, made of what the rooms below have found."""
