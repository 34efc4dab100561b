"""The one trainer that stages 1 and 2 share."""
