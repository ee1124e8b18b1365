"""TwoRoom: navigation with a wall and a door; the easy standard."""
