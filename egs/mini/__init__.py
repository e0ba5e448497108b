"""The embedded corpus and the demo that runs the whole thread on it. Synthetic speech: it proves that code runs."""
