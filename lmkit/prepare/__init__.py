"""The verb `prepare`: raw text to a cleaned corpus."""
