"""A made-up world and language models small enough to train in a minute."""
