"""Values whose extent along some axes is known at run time only, and the operators that give them."""
