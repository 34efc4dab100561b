"""Tasks of the user: what is asked, and when an answer is right."""
