"""Whether the choice of an activation matters: a study of searches, judged by three gates."""
