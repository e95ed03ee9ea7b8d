"""Raw image-text pairs to encoded units: curation, the plan, encoding, the cache, the fleet. Ray lives here."""
