"""Bad input made at random: each module has ``cases(random)``, an endless supply of one kind."""
