"""Room of a serving host that shares its flags with others: what follows the database, so that no worker needs to."""
