"""Tables from the results that `evaluate` writes."""
