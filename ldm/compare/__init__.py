"""Why two pictures differ: what made each (`sides`), by its likely effect (`effects`), and how far their pixels are apart (`pixels`)."""
