"""The page of launch/inspect.py: what it shows, from the rows of an index to one HTML file."""
