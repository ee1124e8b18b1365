"""A disc pushes a body over a table: physics, pictures, scripted data and tasks, for any rigid body."""
