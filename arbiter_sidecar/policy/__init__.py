"""Pure functions that decide. They read no clock, write no log and do not know each other."""
