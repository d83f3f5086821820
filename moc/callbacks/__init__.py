"""One file per concern; each watches training and none changes it."""
