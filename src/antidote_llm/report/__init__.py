"""The report: the HTML page with its figures, and the section for a model card."""
