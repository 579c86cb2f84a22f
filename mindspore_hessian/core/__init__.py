"""From a user's call to a compiled graph: what every transform and operator shares."""
