"""Sources of workflow starts. Each connector is a module of its own; none knows another."""
