"""Entry points: the only folder that parses configs, prints to people or knows a cluster."""
