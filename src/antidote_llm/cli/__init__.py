"""The command ``antidote``: one thin file a command."""
