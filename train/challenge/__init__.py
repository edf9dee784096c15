"""A search that goes on while a run trains: challengers beside the present model, which replace it where separated."""
