"""What an operator family is, and the registry that the other rooms ask."""
