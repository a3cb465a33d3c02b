"""Commands for whoever works on the project; `make` knows them."""
